"""AdamW, the rate term and the sums for the next fit in one pass: 28 bytes a weight in float32.

Legend: a row of ``chunks`` is (count, tensor, addresses of weights, gradients, first and second moments) in int64. Rows
of ``settings`` are :meth:`rdo_kernels.types.AdamW.factors`, rows of ``laws`` (theta, scale), in float32, one for each
tensor. The moments may be of another type than the weights; all arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rdo_kernels.gpu.kernels import TYPES, accumulate, law_of, no_sums, store_sums, tensor_at
from rdo_kernels.gpu.launch import block, by_dtype, device_function, laws_of, table
from rdo_kernels.gpu.rate import add_up, moments_from
from rdo_kernels.types import APPLY, MOMENTS, AdamW, RateFamily

_DECOUPLED = tl.constexpr(APPLY.index("decoupled"))
_GRADIENT, _PRECONDITIONED = tl.constexpr(APPLY.index("gradient")), tl.constexpr(APPLY.index("preconditioned"))


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    weights, gradients, firsts, seconds, mask, setting, theta, scale, function: tl.constexpr, ACTION: tl.constexpr
):
    """Update a block; returns its rate and its weights as written. ``mask`` is None in a full block."""
    decay, beta1, beta2, step, root_factor, eps, gradient_factor = setting
    w = tl.load(weights, mask=mask).to(tl.float32)
    gradient = tl.load(gradients, mask=mask).to(tl.float32) * gradient_factor
    first = tl.load(firsts, mask=mask).to(tl.float32)
    second = tl.load(seconds, mask=mask).to(tl.float32)
    if ACTION == _GRADIENT:
        bits, slope = function(w, theta)
        gradient += scale * slope
    first += (1.0 - beta1) * (gradient - first)
    second = beta2 * second + (1.0 - beta2) * gradient * gradient
    divisor = tl.sqrt(second) * root_factor + eps
    w = decay * w - step * first / divisor
    if ACTION != _GRADIENT:
        bits, slope = function(w, theta)
        if ACTION == _DECOUPLED:
            w -= scale * slope
        else:
            shrink = scale * tl.abs(slope)
            if ACTION == _PRECONDITIONED:
                shrink = shrink / divisor
            left = tl.abs(w) - shrink
            left = tl.where(left <= 0, 0.0, left)
            w = tl.where(w < 0, -left, left)
    stored = w.to(weights.dtype.element_ty)
    tl.store(weights, stored, mask=mask)
    tl.store(firsts, first.to(firsts.dtype.element_ty), mask=mask)
    tl.store(seconds, second.to(seconds.dtype.element_ty), mask=mask)
    if mask is not None:
        bits = tl.where(mask, bits, 0.0)
    return bits, stored.to(tl.float32)


@triton.jit
def adamw(  # type: ignore[no-untyped-def]
    chunks,
    settings,
    laws,
    partials,
    sums,
    function: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ACTION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update a chunk; its rate into ``partials`` (float64), its sums into ``sums`` (float64 [rows, 4])."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(chunks + 6 * row).to(tl.int32)
    tensor = tl.load(chunks + 6 * row + 1)
    weights = tensor_at(tl.load(chunks + 6 * row + 2), WEIGHT, ALIGNED)
    gradients = tensor_at(tl.load(chunks + 6 * row + 3), GRADIENT, ALIGNED)
    firsts = tensor_at(tl.load(chunks + 6 * row + 4), FIRST, ALIGNED)
    seconds = tensor_at(tl.load(chunks + 6 * row + 5), SECOND, ALIGNED)
    own = settings + 7 * tensor
    setting = (
        tl.load(own),
        tl.load(own + 1),
        tl.load(own + 2),
        tl.load(own + 3),
        tl.load(own + 4),
        tl.load(own + 5),
        tl.load(own + 6),
    )
    law = laws + tensor * (PARAMETERS + 3)
    theta = law_of(law, PARAMETERS)
    scale = tl.load(law + PARAMETERS)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):  # without masks, so that loads can be wide
        at = start + offsets
        bits, written = _update(
            weights + at, gradients + at, firsts + at, seconds + at, None, setting, theta, scale, function, ACTION
        )
        total += bits
        gathered = accumulate(written, None, gathered)
    if full < count:
        at = full + offsets
        bits, written = _update(
            weights + at, gradients + at, firsts + at, seconds + at, at < count, setting, theta, scale, function, ACTION
        )
        total += bits
        gathered = accumulate(written, at < count, gathered)
    tl.store(partials + row, tl.where(scale == 0.0, 0.0, tl.sum(total.to(tl.float64))))
    store_sums(sums + 4 * row, gathered)


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    settings: Sequence[AdamW],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    apply: str,
) -> tuple[Tensor, Tensor]:
    assert family.device_fn is not None
    device = weights[0].device
    laws = laws_of(family, theta, scales, device)
    factors = torch.tensor([setting.factors() for setting in settings], dtype=torch.float32).to(device)
    bits = torch.empty(len(weights), dtype=torch.float64, device=device)
    moments = torch.empty(len(weights), len(MOMENTS), dtype=torch.float64, device=device)
    for dtypes, rows in by_dtype(weights, gradients, firsts, seconds).items():
        groups = [[group[row] for row in rows] for group in (weights, gradients, firsts, seconds)]
        chunks = table(*groups)
        partials = torch.empty(chunks.rows, dtype=torch.float64, device=device)
        sums = torch.empty(chunks.rows, 4, dtype=torch.float64, device=device)
        if chunks.rows:
            adamw[(chunks.rows,)](
                chunks.chunks,
                factors[rows],
                laws[rows],
                partials,
                sums,
                device_function(family.device_fn),
                laws.shape[1] - 3,
                *(TYPES[dtype] for dtype in dtypes),
                APPLY.index(apply),
                chunks.aligned,
                block(1024),
                num_warps=8,
            )
        bits[rows] = add_up(partials, chunks, len(rows), 1)
        moments[rows] = moments_from(sums, chunks, groups[0])
    torch.autograd.graph.increment_version([*weights, *firsts, *seconds])
    return bits, moments
