"""Generalized Gaussian law, the model of BackSlash: ``f(w) ~ exp(-(|w|/scale)^nu)`` with the shape nu re-estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rdo.entropy.base import ENTROPY_MODELS, LN2, EntropyModel
from rdo.entropy.shape import CELLS, MAX_SHAPE, MIN_SHAPE, log_scale, shape_table, solve_shape, table_range
from rdo.errors import ConfigError

TINY_SIGMA = 1e-12
"""Weights smaller than this count as this large, so that a law of zeros stays finite in float32."""


POWER = "rdo_kernels.device.power:power"
"""The device function of ``c * (|w| + eps)^nu``; its theta is that of :func:`power_law`."""


def power_rate_and_slope(weight: Tensor, shape: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``((|w|+eps)/scale)^nu / ln 2`` and its derivative, sharing one power between the two."""
    magnitude = weight.abs().add_(eps)
    power = magnitude.log().mul_(shape - 1.0).exp_()
    per_power = scale**-shape / LN2
    return (power * magnitude).mul_(per_power), weight.detach().sign().mul_(power).mul_(shape * per_power)


def power_law(shape: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The parameters (nu, c, eps) of :func:`power_rate_and_slope`, float64 [..., 3]."""
    return torch.stack([shape, scale**-shape / LN2, torch.full_like(shape, eps)], dim=-1)


def power_cdf(x: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """Cumulative distribution of the generalized Gaussian, in float64."""
    x = x.to(torch.float64)
    argument = (x.abs() / scale).pow(shape)
    order = (1.0 / shape).expand_as(argument)
    tail = 0.5 * torch.special.gammaincc(order, argument)
    return torch.where(x < 0, tail, 1.0 - tail)


def scale_of(shape: Tensor, mean_square: Tensor) -> Tensor:
    """Scale (1/g in the paper) of the law with this shape and variance; of variance 1e-24 where there is none."""
    return mean_square.sqrt().nan_to_num(0.0).clamp(min=TINY_SIGMA) * log_scale(shape).exp()


@ENTROPY_MODELS.register("generalized_gaussian")
@dataclass(frozen=True)
class GeneralizedGaussian(EntropyModel):
    """Shape and scale by moment matching over all weights (BackSlash, sections 3 and 4, Algorithm 1).

    Args:
        eps: soft clipping in ``(|w| + eps)^(nu - 1)``, in the units of the weights, > 0. Small values penalise small
            weights hardest; the authors' released code uses 1, which is close to L1 with an adaptive strength.
    """

    name: ClassVar[str] = "generalized_gaussian"
    theta_names: ClassVar[tuple[str, ...]] = ("shape", "scale")
    device_fn: ClassVar[str | None] = POWER
    device_fit: ClassVar[str | None] = "rdo_kernels.device.power:fit_generalized_gaussian"
    eps: float = 0.01

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def fit(self, moments: Tensor) -> Tensor:
        count, sum_abs, sum_sq = moments[..., 0], moments[..., 1], moments[..., 2]
        shape = solve_shape(sum_sq * count / sum_abs.square())
        return torch.stack([shape, scale_of(shape, sum_sq / count)], dim=-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        shape, scale = theta.unbind(-1)
        return power_rate_and_slope(weight, shape, scale, self.eps)

    def device_theta(self, theta: Tensor) -> Tensor:
        shape, scale = theta.unbind(-1)
        return power_law(shape, scale, self.eps)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        shape, scale = theta.unbind(-1)
        return power_cdf(x, shape, scale)

    def paper_factor(self, theta: Tensor) -> Tensor:
        shape, scale = theta.unbind(-1)
        return LN2 * scale**shape

    def device_fit_options(self) -> Tensor:
        low, width = table_range()
        numbers = [self.eps, TINY_SIGMA, MIN_SHAPE, MAX_SHAPE, low, 1.0 / width, float(CELLS), 0.0]
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), shape_table().flatten()])


def check_eps(eps: float) -> None:
    """Raise ConfigError unless ``eps`` is a positive number."""
    if not 0.0 < eps < float("inf"):
        raise ConfigError(f"eps must be a positive number (the slope is infinite at 0 without it), got {eps}")
