"""Weights rounded to multiples of a step, and kept as they were, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rdo_kernels.gpu.kernels import TYPES, accumulate, no_sums, store_sums, tensor_at
from rdo_kernels.gpu.launch import addresses, block, geometry, interpreting
from rdo_kernels.gpu.quantize_kernels import INTEGERS, divided, reciprocal
from rdo_kernels.gpu.rate import moments_from


@triton.jit
def _keep(weights, kept, mask, step, law, FUSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """One block's share; returns its weights as they were, in float32. ``mask`` is None in a full block."""
    stored = tl.load(weights, mask=mask)
    tl.store(kept, stored, mask=mask)
    w = stored.to(tl.float32)
    scaled = divided(w, law[0], law[1], law[2], FUSED)
    magnitude = tl.abs(scaled)
    whole = tl.where(magnitude < INTEGERS, (magnitude + INTEGERS) - INTEGERS, magnitude)
    tl.store(weights, (tl.where(scaled < 0.0, -whole, whole) * step).to(weights.dtype.element_ty), mask=mask)
    return w


@triton.jit(do_not_specialize=["first"])
def keep_and_round_kernel(  # type: ignore[no-untyped-def]
    chunks,
    addresses,
    steps,
    sums,
    first,
    WEIGHT: tl.constexpr,
    FUSED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of a tensor and of its copy; tables are those of :mod:`rdo_kernels.gpu.kernels`, sums of the copy."""
    row = tl.program_id(0).to(tl.int64) + first
    count = tl.load(chunks + 3 * row).to(tl.int32)
    tensor, begin = tl.load(chunks + 3 * row + 1), tl.load(chunks + 3 * row + 2)
    weights = tensor_at(addresses, tensor, begin, 0, 2, WEIGHT, ALIGNED)
    kept = tensor_at(addresses, tensor, begin, 1, 2, WEIGHT, ALIGNED)
    step = tl.load(steps + tensor)
    law = reciprocal(step)
    offsets = tl.arange(0, BLOCK)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        at = start + offsets
        gathered = accumulate(_keep(weights + at, kept + at, None, step, law, FUSED), None, gathered)
    if full < count:
        at = full + offsets
        gathered = accumulate(_keep(weights + at, kept + at, at < count, step, law, FUSED), at < count, gathered)
    store_sums(sums + 4 * row, gathered)


def keep_and_round(weights: Sequence[Tensor], kept: Sequence[Tensor], steps: Tensor) -> Tensor:
    """See :func:`rdo_kernels.operations.keep_and_round`."""
    cut, places = geometry(weights, kept), addresses(weights, kept)
    sums = torch.empty(cut.rows, 4, dtype=torch.float64, device=cut.chunks.device)
    for span in cut.spans:
        options = TYPES[span.dtypes[0]], not interpreting(), places.aligned, block(1024)
        keep_and_round_kernel[(span.rows,)](cut.chunks, places.table, steps, sums, span.first, *options, num_warps=8)
    torch.autograd.graph.increment_version([*weights, *kept])
    return moments_from(sums, cut)
