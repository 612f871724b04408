"""Our post-training method: steps by sensitivity, and columns that make good for the rounding of those before them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo.rounding import round_to_entropy
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.registries import METHODS


@METHODS.register("rdo-rounding")
@dataclass(frozen=True)
class CompensatedRounding(Method):
    """Compensated rounding of a normally trained model to an entropy.

    See :func:`rdo.rounding.round_to_entropy`.

    Args:
        bits: entropies of the coded weights, in bits a weight.
        price: what a bit counts, in units of its worth at high rates.
        batches: of calibration data, which is training data.
    """

    name: ClassVar[str] = "rdo-rounding"
    bits: tuple[float, ...] = ()
    price: float = 0.0
    batches: int = 16

    def __post_init__(self) -> None:
        if not self.bits or self.quantizers():
            raise ConfigError("give at least one size in `bits`, and no steps: they follow from the size")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def points(self) -> list[OperatingPoint]:
        options = {"price": self.price, "calibration_batches": self.batches}
        return [OperatingPoint(rate=None, quantizer=None, options={"bits": bits, **options}) for bits in self.bits]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        quantizer = round_to_entropy(
            model,
            float(point.options["bits"]),
            context.calibration(self.batches),
            context.prepared.loss,
            price=self.price,
            compressible=context.architecture.compressible,
        )
        rdo.save_compressed(model, path, quantizer=quantizer, compressible=context.architecture.compressible)
        return {}
