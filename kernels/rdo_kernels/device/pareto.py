"""The symmetric Pareto law."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pareto(w, theta):  # type: ignore[no-untyped-def]
    """Rate ``b * log2(1 + |w| / scale)`` and its slope, which is 0 at w = 0; theta is (scale, b)."""
    scale, bits = theta
    magnitude = tl.abs(w)
    sign = (w > 0).to(tl.float32) - (w < 0).to(tl.float32)
    return bits * tl.log2(1.0 + magnitude / scale), bits * 1.4426950408889634 * sign / (magnitude + scale)
