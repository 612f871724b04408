"""BackSlash: training under a rate constraint whose law follows the weights, then rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo.errors import ConfigError
from rdo_harness.methods.base import Method, OperatingPoint
from rdo_harness.rate_settings import RateSettings
from rdo_harness.registries import METHODS


@dataclass(frozen=True)
class RateTraining(Method):
    """Training with a rate term: every lambda gives one model, every step one operating point of it.

    Args:
        lams: lambdas to train with.
        apply_as: "gradient", "decoupled" or "proximal" (see :class:`rdo.RateConstraint`).
        units: of lambda, "bits" (loss per bit per parameter) or "paper".
        eps: soft clipping of the slope at zero.
        pooling: one law for all weights ("global") or one for each tensor ("tensor").
        scale_by_lr: "decoupled" only, let the step fade with the learning rate.
        precondition: "proximal" only, divide by the optimizer's second moment.
        on: share of the training with the rate term on; plain training after that.
    """

    lams: tuple[float, ...] = ()
    apply_as: str = "gradient"
    units: str = "bits"
    eps: float = 0.01
    pooling: str = "global"
    scale_by_lr: bool = False
    precondition: bool = False
    on: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lams:
            raise ConfigError("give at least one lambda in `lams`")

    def entropy_model(self) -> dict[str, Any]:
        """Configuration of the law of the weights."""
        return {"name": "generalized_gaussian", "eps": self.eps}

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(rate=self._settings(lam), quantizer=quantizer)
            for lam in self.lams
            for quantizer in self.quantizers()
        ]

    def _settings(self, lam: float) -> RateSettings:
        return RateSettings(
            lam=lam,
            entropy_model=self.entropy_model(),
            apply=self.apply_as,
            units=self.units,
            pooling=self.pooling,
            scale_by_lr=self.scale_by_lr,
            precondition=self.precondition,
            on=self.on,
        )


@METHODS.register("backslash")
@dataclass(frozen=True)
class BackSlash(RateTraining):
    """The paper's method: a generalized Gaussian re-estimated before every step (Algorithm 1)."""

    name: ClassVar[str] = "backslash"
