"""Training to a quality: the smallest file whose loss is at most so much above that of normal training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.rate_settings import RateSettings
from rdo_harness.registries import METHODS


@METHODS.register("backslash-quality")
@dataclass(frozen=True)
class BackSlashToQuality(Method):
    """The smallest size at a quality, one training for each.

    See :class:`rdo.quality.QualityTarget`.

    Args:
        increases: how far validation cross entropy may be above that of normal training, as shares of it, each a
            training of its own.
    """

    name: ClassVar[str] = "backslash-quality"
    coded_afterwards: ClassVar[bool] = False
    increases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.increases or self.quantizers():
            raise ConfigError("give at least one quality in `increases`, and no steps: they follow from it")
        if not all(increase > -1.0 for increase in self.increases):
            raise ConfigError(f"an increase is a share of the loss, such as 0.02; got {min(self.increases):g}")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def points(self) -> list[OperatingPoint]:
        settings = RateSettings(
            lam=0.0,
            entropy_model={"name": "pareto"},
            pressure=0.03,
            start="settled",
            compensated=True,
            coders=self.coders,
        )
        return [
            OperatingPoint(rate=replace(settings, increase=increase), quantizer=None) for increase in self.increases
        ]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        assert context.quantizer is not None, "a training to a quality leaves its steps"
        options: dict[str, Any] = {"coder": self.coders, "compressible": context.architecture.compressible}
        quantizer = context.quantizer
        bits = rdo.save_compressed(model, None, quantizer=quantizer, **options).bits_per_parameter
        rdo.save_compressed(model, path, quantizer=replace(quantizer, bits=round(bits, 3)), **options)
        return {}
