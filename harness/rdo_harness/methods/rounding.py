"""Our post-training method: steps by sensitivity, and columns that make good for the rounding of those before them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo.rounding import round_to_size
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.registries import METHODS


@METHODS.register("rdo-rounding")
@dataclass(frozen=True)
class CompensatedRounding(Method):
    """Compensated rounding of a normally trained model to a size.

    See :func:`rdo.rounding.round_to_size`.

    Args:
        bits: sizes of the file, in bits per parameter.
        price: what a bit counts, in units of its worth at high rates.
        batches: of calibration data, which is training data.
    """

    name: ClassVar[str] = "rdo-rounding"
    version: ClassVar[int] = 5
    bits: tuple[float, ...] = ()
    price: float = 0.0
    batches: int = 16

    def __post_init__(self) -> None:
        if not self.bits or self.quantizers():
            raise ConfigError("give at least one size in `bits`, and no steps: they follow from the size")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def points(self) -> list[OperatingPoint]:
        return [OperatingPoint(rate=None, quantizer=None, options={"bits": bits}) for bits in self.bits]

    def config(self) -> dict[str, Any]:
        return {**super().config(), "price": self.price, "batches": self.batches}

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        coding: dict[str, Any] = {"coder": self.coders, "compressible": context.architecture.compressible}
        quantizer = round_to_size(
            model,
            float(point.options["bits"]),
            context.calibration(self.batches),
            context.prepared.loss,
            price=self.price,
            **coding,
        )
        rdo.save_compressed(model, path, quantizer=quantizer, **coding)
        return {}
