"""AdamW, the rate term and the sums for the next fit in one pass: 28 bytes a weight in float32.

Legend: ``chunks``, ``addresses``, ``laws``, ``sums`` are those of :mod:`rdo_kernels.gpu.kernels`; groups are weights,
gradients, first and second moments, and where the weights are master copies also the model's own. Rows of ``factors``
are those of :func:`rdo_kernels.types.adamw_factors` and whether to skip the step, in float32, one for each tensor. The
groups may be of different types; all arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.gpu.kernels import TYPES, accumulate, law_of, no_sums, store_sums, tensor_at
from rdo_kernels.gpu.launch import Addresses, Geometry, addresses, block, device_function, geometry, laws_of
from rdo_kernels.gpu.rate import add_up, moments_from
from rdo_kernels.types import APPLY, AdamW, RateFamily, Scales, adamw_factors

_DECOUPLED = tl.constexpr(APPLY.index("decoupled"))
_GRADIENT, _PRECONDITIONED = tl.constexpr(APPLY.index("gradient")), tl.constexpr(APPLY.index("preconditioned"))
FACTORS = 8


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    weights,
    gradients,
    firsts,
    seconds,
    copies,
    mask,
    setting,
    theta,
    scale,
    function: tl.constexpr,
    COPIED: tl.constexpr,
    ACTION: tl.constexpr,
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
    if COPIED:
        tl.store(copies, w.to(copies.dtype.element_ty), mask=mask)
    if mask is not None:
        bits = tl.where(mask, bits, 0.0)
    return bits, stored.to(tl.float32)


@triton.jit(do_not_specialize=["first"])
def adamw(  # type: ignore[no-untyped-def]
    chunks,
    addresses,
    factors,
    laws,
    partials,
    sums,
    first,
    function: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    COPY: tl.constexpr,
    GROUPS: tl.constexpr,
    ACTION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update a chunk; its rate into ``partials`` (float64). A step that is skipped writes nothing at all."""
    row = tl.program_id(0).to(tl.int64) + first
    count = tl.load(chunks + 3 * row).to(tl.int32)
    tensor, begin = tl.load(chunks + 3 * row + 1), tl.load(chunks + 3 * row + 2)
    weights = tensor_at(addresses, tensor, begin, 0, GROUPS, WEIGHT, ALIGNED)
    gradients = tensor_at(addresses, tensor, begin, 1, GROUPS, GRADIENT, ALIGNED)
    firsts = tensor_at(addresses, tensor, begin, 2, GROUPS, FIRST, ALIGNED)
    seconds = tensor_at(addresses, tensor, begin, 3, GROUPS, SECOND, ALIGNED)
    copies = tensor_at(addresses, tensor, begin, GROUPS - 1, GROUPS, COPY, ALIGNED)
    own = factors + 8 * tensor
    setting = (
        tl.load(own),
        tl.load(own + 1),
        tl.load(own + 2),
        tl.load(own + 3),
        tl.load(own + 4),
        tl.load(own + 5),
        tl.load(own + 6),
    )
    taken = tl.load(own + 7) == 0.0
    count = tl.where(taken, count, 0)
    law = laws + tensor * (PARAMETERS + 3)
    theta = law_of(law, PARAMETERS)
    scale = tl.load(law + PARAMETERS)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):  # without masks, so that loads can be wide
        at = start + offsets
        here = weights + at, gradients + at, firsts + at, seconds + at, copies + at
        bits, written = _update(*here, None, setting, theta, scale, function, GROUPS == 5, ACTION)
        total += bits
        gathered = accumulate(written, None, gathered)
    if full < count:
        at = full + offsets
        here = weights + at, gradients + at, firsts + at, seconds + at, copies + at
        bits, written = _update(*here, at < count, setting, theta, scale, function, GROUPS == 5, ACTION)
        total += bits
        gathered = accumulate(written, at < count, gathered)
    if taken:
        tl.store(partials + row, tl.where(scale == 0.0, 0.0, tl.sum(total.to(tl.float64))))
        store_sums(sums + 4 * row, gathered)


def launch(
    cut: Geometry,
    places: Addresses,
    factors: Tensor,
    laws: Tensor,
    partials: Tensor,
    sums: Tensor,
    family: RateFamily,
    apply: str,
) -> None:
    """One launch for each combination of dtypes; ``factors`` float32 [T, 8], ``laws`` float32 [T, D + 3]."""
    assert family.device_fn is not None
    for span in cut.spans:
        types = [TYPES[dtype] for dtype in span.dtypes]
        adamw[(span.rows,)](
            cut.chunks,
            places.table,
            factors,
            laws,
            partials,
            sums,
            span.first,
            device_function(family.device_fn),
            laws.shape[1] - 3,
            *(types if len(types) == 5 else [*types, types[-1]]),
            len(types),
            APPLY.index(apply),
            places.aligned,
            block(1024),
            num_warps=8,
        )


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    settings: Sequence[AdamW] | NDArray[np.float64],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    apply: str,
) -> tuple[Tensor, Tensor]:
    device, groups = weights[0].device, (weights, gradients, firsts, seconds)
    cut = geometry(*groups)
    factors = torch.zeros(len(weights), FACTORS, dtype=torch.float32)
    factors[:, :7] = torch.from_numpy(adamw_factors(settings))
    laws = laws_of(family, theta, scales, device)
    partials = torch.empty(cut.rows, dtype=torch.float64, device=device)
    sums = torch.empty(cut.rows, 4, dtype=torch.float64, device=device)
    launch(cut, addresses(*groups), factors.to(device), laws, partials, sums, family, apply)
    torch.autograd.graph.increment_version([*weights, *firsts, *seconds])
    return add_up(partials, cut, 1), moments_from(sums, cut)
