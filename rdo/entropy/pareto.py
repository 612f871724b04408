"""Symmetric Pareto (Lomax) law: tails that fall as a power of the weight; the slope of its rate is a hyperbola.

What a universal code of integers charges (Rissanen, Annals of Statistics 11(2), 1983: about ``log2`` of the magnitude)
is the rate of such a law. Its slope is steep at small weights and hardly touches large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdo.entropy.base import ENTROPY_MODELS, LN2, EntropyModel
from rdo.entropy.generalized_gaussian import TINY_SIGMA
from rdo.errors import ConfigError


@ENTROPY_MODELS.register("pareto")
@dataclass(frozen=True)
class Pareto(EntropyModel):
    """``f(w) = (tail / 2 scale) (1 + |w|/scale)^-(tail+1)``, with the scale that gives the variance of the weights.

    Args:
        tail: decay of the tails, over 2 so that there is a variance; with 3 the scale is the root mean square.
    """

    name: ClassVar[str] = "pareto"
    theta_names: ClassVar[tuple[str, ...]] = ("scale",)
    device_fn: ClassVar[str | None] = "rdo_kernels.device.pareto:pareto"
    tail: float = 2.5

    def __post_init__(self) -> None:
        if not 2.0 < self.tail < float("inf"):
            raise ConfigError(f"tail must be a number over 2 (the variance is infinite otherwise), got {self.tail}")

    def fit(self, moments: Tensor) -> Tensor:
        mean_square = (moments[..., 2] / moments[..., 0]).nan_to_num(0.0)
        scale = (mean_square * ((self.tail - 1.0) * (self.tail - 2.0) / 2.0)).sqrt()
        return scale.clamp(min=TINY_SIGMA).unsqueeze(-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        scale, bits = theta[..., 0], (self.tail + 1.0) / LN2
        magnitude = weight.abs()
        return (magnitude / scale).log1p().mul(bits), weight.detach().sign().mul(bits).div(magnitude + scale)

    def device_theta(self, theta: Tensor) -> Tensor:
        return torch.stack([theta[..., 0], torch.full_like(theta[..., 0], self.tail + 1.0)], dim=-1)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        x = x.to(torch.float64)
        tail = 0.5 * torch.exp(-self.tail * torch.log1p(x.abs() / theta[..., 0]))
        return torch.where(x < 0, tail, 1.0 - tail)
