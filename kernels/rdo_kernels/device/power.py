"""Power laws: generalized Gaussian, Lp, and with eps 0 Laplace (nu = 1) and Gaussian (nu = 2)."""

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
