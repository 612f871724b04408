"""Weights rounded to multiples of a step, and kept as they were, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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


@triton.jit
def _law_at(steps, place, rest, count, apart, offsets):  # type: ignore[no-untyped-def]
    """The steps of weights that lie so far behind the first of a chunk, which is ``rest`` behind a step's first."""
    step = tl.load(steps + (place + (rest + offsets) // apart) % count)
    return step, reciprocal(step)


@triton.jit(do_not_specialize=["first"])
def keep_and_round_kernel(  # type: ignore[no-untyped-def]
    chunks,
    addresses,
    stepped,
    sums,
    first,
    WEIGHT: tl.constexpr,
    FUSED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of a tensor and of its copy; tables are those of :mod:`rdo_kernels.gpu.kernels`, sums of the copy.

    ``stepped`` is int64 [T, 3]: where the steps of a tensor are, how many, and how many weights lie between one and the
    next. With CHANNELS some tensor has more than one.
    """
    row = tl.program_id(0).to(tl.int64) + first
    count = tl.load(chunks + 3 * row).to(tl.int32)
    tensor, begin = tl.load(chunks + 3 * row + 1), tl.load(chunks + 3 * row + 2)
    weights = tensor_at(addresses, tensor, begin, 0, 2, WEIGHT, ALIGNED)
    kept = tensor_at(addresses, tensor, begin, 1, 2, WEIGHT, ALIGNED)
    own = tl.load(stepped + 3 * tensor).to(tl.pointer_type(tl.float32))
    step = tl.load(own)
    law = reciprocal(step)
    offsets = tl.arange(0, BLOCK)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    if CHANNELS:
        several, apart = tl.load(stepped + 3 * tensor + 1), tl.load(stepped + 3 * tensor + 2)
        place, rest = (begin // apart % several).to(tl.int32), (begin % apart).to(tl.int32)
        several, apart = several.to(tl.int32), apart.to(tl.int32)
    for start in range(0, full, BLOCK):
        at = start + offsets
        if CHANNELS:
            each, laws = _law_at(own, place, rest, several, apart, at)
        else:
            each, laws = step, law
        gathered = accumulate(_keep(weights + at, kept + at, None, each, laws, FUSED), None, gathered)
    if full < count:
        at = full + offsets
        if CHANNELS:
            each, laws = _law_at(own, place, rest, several, apart, at)
        else:
            each, laws = step, law
        gathered = accumulate(_keep(weights + at, kept + at, at < count, each, laws, FUSED), at < count, gathered)
    store_sums(sums + 4 * row, gathered)


def keep_and_round(
    weights: Sequence[Tensor], kept: Sequence[Tensor], steps: Sequence[Tensor], apart: Sequence[int]
) -> Tensor:
    """See :func:`rdo_kernels.operations.keep_and_round`."""
    cut, places = geometry(weights, kept), addresses(weights, kept)
    own = tuple([(step.data_ptr(), step.numel(), between) for step, between in zip(steps, apart, strict=True)])
    several = any(count > 1 for _, count, _ in own)
    table = _table(own, weights[0].device)
    sums = torch.empty(cut.rows, 4, dtype=torch.float64, device=cut.chunks.device)
    for span in cut.spans:
        options = TYPES[span.dtypes[0]], not interpreting(), several, places.aligned, block(1024)
        keep_and_round_kernel[(span.rows,)](cut.chunks, places.table, table, sums, span.first, *options, num_warps=8)
    torch.autograd.graph.increment_version([*weights, *kept])
    return moments_from(sums, cut)


@lru_cache(maxsize=8)
def _table(rows: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device)
