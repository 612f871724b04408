"""Shape of a generalized Gaussian by moment matching (Sharifi & Leon-Garcia 1995; BackSlash, Algorithm 1)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MIN_SHAPE, MAX_SHAPE = 0.1, 3.0
"""The range of the shape table of the BackSlash authors; estimates are clamped to it."""


def moment_ratio(shape: Tensor) -> Tensor:
    """Return ``E[w^2] / E[|w|]^2 = Gamma(1/nu) Gamma(3/nu) / Gamma(2/nu)^2``, which decreases in nu."""
    return torch.exp(_log_ratio(shape))


def solve_shape(ratio: Tensor) -> Tensor:
    """Return the shape nu in [0.1, 3.0] whose :func:`moment_ratio` is ``ratio``; float64, any size.

    Ratios beyond the range clamp to its ends: 1 (a constant |w|, one weight) gives 3.0, very many exact zeros give 0.1.
    NaN (no weights, or all zero) gives 1.0, the Laplace law.
    """
    target = torch.log(ratio.to(torch.float64))
    shapes, ratios = _table(target.device)
    # ratios decrease, so search in their negatives; two shapes bracket the answer, and Newton's method finishes.
    upper = torch.searchsorted(-ratios, -target.contiguous()).clamp(1, len(shapes) - 1)
    shape = 0.5 * (shapes[upper - 1] + shapes[upper])
    for _ in range(4):
        inverse = 1.0 / shape
        derivative = -inverse.square() * (
            torch.digamma(inverse) + 3.0 * torch.digamma(3.0 * inverse) - 4.0 * torch.digamma(2.0 * inverse)
        )
        shape = (shape - (_log_ratio(shape) - target) / derivative).clamp(MIN_SHAPE, MAX_SHAPE)
    return torch.where(target.isnan(), torch.ones_like(shape), shape)


def _log_ratio(shape: Tensor) -> Tensor:
    inverse = 1.0 / shape
    return torch.lgamma(inverse) + torch.lgamma(3.0 * inverse) - 2.0 * torch.lgamma(2.0 * inverse)


@cache
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    shapes = torch.linspace(MIN_SHAPE, MAX_SHAPE, 291, dtype=torch.float64, device=device)
    return shapes, _log_ratio(shapes)
