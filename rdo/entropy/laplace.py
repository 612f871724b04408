"""Laplace law: nu = 1, with the scale of maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdo.entropy.base import ENTROPY_MODELS, LN2, EntropyModel
from rdo.entropy.generalized_gaussian import POWER, TINY_SIGMA, power_law


@ENTROPY_MODELS.register("laplace")
@dataclass(frozen=True)
class Laplace(EntropyModel):
    """``f(w) = exp(-|w|/scale) / (2 scale)`` with ``scale = E|w|``; the rate is ``|w| / (scale ln 2)`` bits."""

    name: ClassVar[str] = "laplace"
    theta_names: ClassVar[tuple[str, ...]] = ("scale",)
    device_fn: ClassVar[str | None] = POWER

    def fit(self, moments: Tensor) -> Tensor:
        return (moments[..., 1] / moments[..., 0]).nan_to_num(0.0).clamp(min=TINY_SIGMA).unsqueeze(-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        per_unit = 1.0 / (theta[..., 0] * LN2)
        return weight.abs() * per_unit, weight.detach().sign() * per_unit

    def device_theta(self, theta: Tensor) -> Tensor:
        return power_law(torch.ones_like(theta[..., 0]), theta[..., 0], eps=0.0)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        x = x.to(torch.float64)
        tail = 0.5 * torch.exp(-x.abs() / theta[..., 0])
        return torch.where(x < 0, tail, 1.0 - tail)

    def paper_factor(self, theta: Tensor) -> Tensor:
        return LN2 * theta[..., 0]
