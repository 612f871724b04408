"""Gaussian law: nu = 2. Its rate is weight decay with a strength that follows the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdo.entropy.base import ENTROPY_MODELS, LN2, EntropyModel
from rdo.entropy.generalized_gaussian import POWER, TINY_SIGMA, power_law


@ENTROPY_MODELS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(EntropyModel):
    """Zero-mean normal law with standard deviation ``sigma``; the rate is ``w^2 / (2 sigma^2 ln 2)`` bits."""

    name: ClassVar[str] = "gaussian"
    theta_names: ClassVar[tuple[str, ...]] = ("sigma",)
    device_fn: ClassVar[str | None] = POWER

    def fit(self, moments: Tensor) -> Tensor:
        sigma = (moments[..., 2] / moments[..., 0]).sqrt()
        return sigma.nan_to_num(0.0).clamp(min=TINY_SIGMA).unsqueeze(-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        slope = weight / (theta[..., 0].square() * LN2)
        return 0.5 * weight * slope, slope

    def device_theta(self, theta: Tensor) -> Tensor:
        sigma = theta[..., 0]
        return power_law(torch.full_like(sigma, 2.0), math.sqrt(2.0) * sigma, eps=0.0)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        # torch.special.ndtr loses the lower tail beyond 8 sigma.
        tail: Tensor = torch.special.erfc(-x.to(torch.float64) / (theta[..., 0] * math.sqrt(2.0)))
        return 0.5 * tail

    def paper_factor(self, theta: Tensor) -> Tensor:
        return 2.0 * LN2 * theta[..., 0].square()
