"""Lp regularisers as entropy models: a generalized Gaussian whose shape is fixed (BackSlash, Table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdo.entropy.base import ENTROPY_MODELS, LN2, EntropyModel
from rdo.entropy.generalized_gaussian import POWER, check_eps, power_cdf, power_law, power_rate_and_slope, scale_of
from rdo.errors import ConfigError


@ENTROPY_MODELS.register("lp")
@dataclass(frozen=True)
class Lp(EntropyModel):
    """``mean (|w|+eps)^p`` with p fixed. The scale is matched to the variance, so that the rate is in bits.

    In the paper's units (``RateConstraint(units="paper")``) this is exactly the plain Lp regulariser.

    Args:
        p: exponent in (0, 4]; 0.5, 1 and 2 in the paper's ablation.
        eps: soft clipping, in the units of the weights, > 0.
    """

    name: ClassVar[str] = "lp"
    theta_names: ClassVar[tuple[str, ...]] = ("scale",)
    device_fn: ClassVar[str | None] = POWER
    p: float = 1.0
    eps: float = 0.01

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if not 0.0 < self.p <= 4.0:
            raise ConfigError(f"p must be in (0, 4], got {self.p}")

    def fit(self, moments: Tensor) -> Tensor:
        shape = torch.as_tensor(self.p, dtype=torch.float64, device=moments.device)
        return scale_of(shape, moments[..., 2] / moments[..., 0]).unsqueeze(-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return power_rate_and_slope(weight, self._shape(theta), theta[..., 0], self.eps)

    def device_theta(self, theta: Tensor) -> Tensor:
        scale = theta[..., 0]
        return power_law(torch.full_like(scale, self.p), scale, self.eps)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        return power_cdf(x, self._shape(theta), theta[..., 0])

    def paper_factor(self, theta: Tensor) -> Tensor:
        return LN2 * theta[..., 0] ** self.p

    def _shape(self, theta: Tensor) -> Tensor:
        return torch.as_tensor(self.p, dtype=theta.dtype, device=theta.device)
