"""Plain weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), then rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo.errors import ConfigError
from rdo_harness.methods.base import Method, OperatingPoint
from rdo_harness.rate_settings import WEIGHT_DECAY, RateSettings
from rdo_harness.registries import METHODS


@METHODS.register("weight-decay")
@dataclass(frozen=True)
class WeightDecay(Method):
    """Training with AdamW's decoupled weight decay of the compressible weights, then rounding to nearest.

    Args:
        lams: strengths; every step multiplies the weights by 1 - learning rate * strength. Each is one training.
    """

    name: ClassVar[str] = "weight-decay"
    lams: tuple[float, ...] = (1.0, 10.0, 100.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lams or not all(0.0 < lam < float("inf") for lam in self.lams):
            raise ConfigError(f"give positive `lams`, got {list(self.lams)}")

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(RateSettings(lam, {}, apply="decoupled", units=WEIGHT_DECAY), quantizer)
            for lam in self.lams
            for quantizer in self.quantizers()
        ]
