"""Shape of a generalized Gaussian by moment matching (Sharifi & Leon-Garcia 1995; BackSlash, Algorithm 1).

The equation has no closed solution. It is solved once, by Newton's method at the nodes of a table of polynomials; a
look-up then takes a few operations without iterations, the same on every device: :mod:`rdo_kernels.device.power` reads
the same table.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

MIN_SHAPE, MAX_SHAPE = 0.1, 3.0
"""The range of the shape table of the BackSlash authors; estimates are clamped to it."""

CELLS, TERMS = 512, 8
"""Equal intervals of the logarithm of the moment ratio, and coefficients of the polynomial in each."""


def moment_ratio(shape: Tensor) -> Tensor:
    """Return ``E[w^2] / E[|w|]^2 = Gamma(1/nu) Gamma(3/nu) / Gamma(2/nu)^2``, which decreases in nu."""
    return torch.exp(_log_ratio(shape))


def log_scale(shape: Tensor) -> Tensor:
    """Logarithm of the scale (1/g in the paper) of the law with this shape and variance 1."""
    return 0.5 * (torch.lgamma(1.0 / shape) - torch.lgamma(3.0 / shape))


def solve_shape(ratio: Tensor) -> Tensor:
    """Return the shape nu in [0.1, 3.0] whose :func:`moment_ratio` is ``ratio``, to 1e-10; float64, any size.

    Ratios beyond the range clamp to its ends: 1 (a constant |w|, one weight) gives 3.0, very many exact zeros give 0.1.
    NaN (no weights, or all zero) gives 1.0, the Laplace law.
    """
    target = torch.log(ratio.to(torch.float64))
    low, width = table_range()
    place = ((target - low) / width).nan_to_num(0.0).clamp(0.0, float(CELLS))
    cell = place.to(torch.int64).clamp(max=CELLS - 1)
    table, powers = _table_on(target.device)
    shape = (table[cell] * (place - cell).unsqueeze(-1) ** powers).sum(-1)
    shape = torch.where(place <= 0.0, MAX_SHAPE, torch.where(place >= CELLS, MIN_SHAPE, shape))
    return torch.where(target.isnan(), 1.0, shape)


@cache
def table_range() -> tuple[float, float]:
    """Logarithm of the moment ratio at which the table begins, and the width of a cell."""
    low, high = _log_ratio(torch.tensor([MAX_SHAPE, MIN_SHAPE], dtype=torch.float64)).tolist()
    return low, (high - low) / CELLS


@cache
def shape_table() -> Tensor:
    """Coefficients by rising power of the shape and of :func:`log_scale`: float64 [2, CELLS, TERMS]."""
    low, width = table_range()
    # Chebyshev nodes, where interpolation errs least.
    nodes = 0.5 - 0.5 * np.cos((2 * np.arange(TERMS) + 1) * math.pi / (2 * TERMS))
    places = torch.arange(CELLS, dtype=torch.float64).unsqueeze(1) + torch.from_numpy(nodes)
    shapes = _newton(low + width * places)
    powers = torch.from_numpy(np.vander(nodes, increasing=True))
    values = torch.stack([shapes, log_scale(shapes)])
    coefficients: Tensor = torch.linalg.solve(powers, values.unsqueeze(-1))
    return coefficients.squeeze(-1).contiguous()


@cache
def _table_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """The shape's half of the table, and the powers of its terms."""
    return shape_table()[0].to(device), torch.arange(TERMS, dtype=torch.float64, device=device)


def _newton(target: Tensor) -> Tensor:
    """Solve ``log moment_ratio(shape) = target`` from the nearest of a few hundred shapes."""
    shapes = torch.linspace(MIN_SHAPE, MAX_SHAPE, 291, dtype=torch.float64)
    # ratios decrease, so search in their negatives; two shapes bracket the answer.
    upper = torch.searchsorted(-_log_ratio(shapes), -target).clamp(1, len(shapes) - 1)
    shape = 0.5 * (shapes[upper - 1] + shapes[upper])
    for _ in range(6):
        inverse = 1.0 / shape
        derivative = -inverse.square() * (
            torch.digamma(inverse) + 3.0 * torch.digamma(3.0 * inverse) - 4.0 * torch.digamma(2.0 * inverse)
        )
        shape = (shape - (_log_ratio(shape) - target) / derivative).clamp(MIN_SHAPE, MAX_SHAPE)
    return shape


def _log_ratio(shape: Tensor) -> Tensor:
    inverse = 1.0 / shape
    return torch.lgamma(inverse) + torch.lgamma(3.0 * inverse) - 2.0 * torch.lgamma(2.0 * inverse)
