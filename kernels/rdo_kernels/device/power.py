"""Power laws: generalized Gaussian, Lp, and with eps 0 Laplace (nu = 1) and Gaussian (nu = 2).

:func:`power` is their rate; :func:`fit_generalized_gaussian` fits the one whose shape is free, from sums that are on
the device, so that no step waits for the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

SMALLEST_NORMAL = tl.constexpr(2.0**-126)  # a smaller constant would make everything float64


@triton.jit
def power(w, theta):  # type: ignore[no-untyped-def]
    """Rate ``c * (|w| + eps)^nu`` and its slope, which is 0 at w = 0; theta is (nu, c, eps)."""
    nu, c, eps = theta
    magnitude = tl.maximum(tl.abs(w) + eps, SMALLEST_NORMAL, propagate_nan=tl.PropagateNan.ALL)
    root = tl.exp2((nu - 1.0) * tl.log2(magnitude))
    sign = (w > 0).to(tl.float32) - (w < 0).to(tl.float32)
    return c * root * magnitude, nu * c * root * sign


@triton.jit
def fit_generalized_gaussian(moments, options):  # type: ignore[no-untyped-def]
    """Moment matching: theta of :func:`power` from (count, sum |w|, sum w^2, zeros, max |w|), float64, any block.

    ``options`` (float64) are eps, the smallest deviation, the range of shapes and what ``rdo.entropy.shape`` says of
    its table: where it begins, cells per unit, number of cells, 1 spare; then the table, eight coefficients a cell.
    """
    count, sum_abs, sum_sq = moments[0], moments[1], moments[2]
    eps, tiny = tl.load(options), tl.load(options + 1)
    smallest, greatest = tl.load(options + 2), tl.load(options + 3)
    low, per_unit, cells = tl.load(options + 4), tl.load(options + 5), tl.load(options + 6)
    target = tl.log(sum_sq * count / (sum_abs * sum_abs))
    known = target == target
    place = tl.where(known, (target - low) * per_unit, 0.0)
    place = tl.minimum(tl.maximum(place, 0.0), cells)
    cell = tl.minimum(place, cells - 1.0).to(tl.int64)
    rest = place - cell.to(tl.float64)
    shapes = options + 8 + 8 * cell
    scales = shapes + 8 * cells.to(tl.int64)
    shape, log_scale = tl.load(shapes + 7), tl.load(scales + 7)
    for term in tl.static_range(7):
        shape = shape * rest + tl.load(shapes + 6 - term)
        log_scale = log_scale * rest + tl.load(scales + 6 - term)
    shape = tl.where(place <= 0.0, greatest, tl.where(place >= cells, smallest, shape))
    shape = tl.where(known, shape, 1.0)
    log_scale = tl.where(known, log_scale, -0.34657359027997264)  # ln(1/2) / 2: of the Laplace law
    mean_square = sum_sq / count
    deviation = tl.sqrt(tl.where(mean_square == mean_square, mean_square, 0.0))
    log_scale += tl.log(tl.maximum(deviation, tiny))
    c = tl.exp(-shape * log_scale) * 1.4426950408889634
    return shape, c, tl.zeros_like(shape) + eps
