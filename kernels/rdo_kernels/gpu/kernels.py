"""The Triton kernels of the rate term: one program for each chunk of at most 65,536 weights.

Legend: a row of ``chunks`` is (count, tensor, first weight) in int64; ``first`` is the first row of this launch. A row
of ``addresses`` (int64) says where the tensors of each group begin. A row of ``laws`` is (theta of the device function,
scale, factor, floor) in float32, one for each tensor. All arithmetic is in float32, sums over a chunk and beyond in
float64 and in a fixed order. ``sums`` (float64 [rows, 4]) are those of the weights as written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

RATE, ADD_SLOPE, SUBTRACT_SLOPE, SHRINK, SHRINK_SCALED = range(5)
_RATE, _ADD_SLOPE, _SUBTRACT_SLOPE = tl.constexpr(RATE), tl.constexpr(ADD_SLOPE), tl.constexpr(SUBTRACT_SLOPE)
_SHRINK_SCALED = tl.constexpr(SHRINK_SCALED)


@triton.jit
def law_of(row, PARAMETERS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A device function's theta, of one to four parameters."""
    if PARAMETERS == 1:
        return (tl.load(row),)
    elif PARAMETERS == 2:
        return (tl.load(row), tl.load(row + 1))
    elif PARAMETERS == 3:
        return (tl.load(row), tl.load(row + 1), tl.load(row + 2))
    else:
        tl.static_assert(PARAMETERS == 4, "a device function takes one to four parameters")
        return (tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3))


@triton.jit
def pointer_at(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def tensor_at(addresses, tensor, begin, group, GROUPS: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointer to weight ``begin`` (int64) of a tensor of a group. Chunks begin at multiples of 65,536 weights."""
    return pointer_at(
        tl.load(addresses + tensor * GROUPS + group) + begin * (DTYPE.primitive_bitwidth // 8), DTYPE, ALIGNED
    )


@triton.jit
def _act(  # type: ignore[no-untyped-def]
    weights, others, mask, theta, scale, factor, floor, function: tl.constexpr, ACTION: tl.constexpr
):
    """Do one block's share of the action; its bits, and the weights as written. ``mask`` is None in a full block."""
    w = tl.load(weights, mask=mask).to(tl.float32)
    bits, slope = function(w, theta)
    if ACTION == _ADD_SLOPE:
        # Launched without fused multiply-add: rounded twice, as when autograd adds the two gradients.
        more = (scale * slope).to(others.dtype.element_ty).to(tl.float32)
        total = tl.load(others, mask=mask).to(tl.float32) + more
        tl.store(others, total.to(others.dtype.element_ty), mask=mask)
    elif ACTION != _RATE:
        if ACTION == _SUBTRACT_SLOPE:
            w = w - scale * slope
        else:
            shrink = scale * tl.abs(slope)
            if ACTION == _SHRINK_SCALED:
                shrink = shrink / (tl.sqrt(tl.load(others, mask=mask).to(tl.float32)) * factor + floor)
            left = tl.abs(w) - shrink
            left = tl.where(left <= 0, 0.0, left)
            w = tl.where(w < 0, -left, left)
        stored = w.to(weights.dtype.element_ty)
        tl.store(weights, stored, mask=mask)
        w = stored.to(tl.float32)
    if mask is not None:
        bits = tl.where(mask, bits, 0.0)
    return bits, w


@triton.jit(do_not_specialize=["first"])
def rate(  # type: ignore[no-untyped-def]
    chunks,
    addresses,
    laws,
    partials,
    sums,
    first,
    function: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    OTHER: tl.constexpr,
    ACTION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rate of a chunk into ``partials`` (float64), and the action, in the same pass."""
    row = tl.program_id(0).to(tl.int64) + first
    count = tl.load(chunks + 3 * row).to(tl.int32)
    tensor, begin = tl.load(chunks + 3 * row + 1), tl.load(chunks + 3 * row + 2)
    law = laws + tensor * (PARAMETERS + 3)
    weights = tensor_at(addresses, tensor, begin, 0, 2, WEIGHT, ALIGNED)
    others = tensor_at(addresses, tensor, begin, 1, 2, OTHER, ALIGNED)
    theta = law_of(law, PARAMETERS)
    scale, factor, floor = tl.load(law + PARAMETERS), tl.load(law + PARAMETERS + 1), tl.load(law + PARAMETERS + 2)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):  # without masks, so that loads can be wide
        at = start + offsets
        bits, written = _act(weights + at, others + at, None, theta, scale, factor, floor, function, ACTION)
        total += bits
        if ACTION >= _SUBTRACT_SLOPE:
            gathered = accumulate(written, None, gathered)
    if full < count:
        at = full + offsets
        bits, written = _act(weights + at, others + at, at < count, theta, scale, factor, floor, function, ACTION)
        total += bits
        if ACTION >= _SUBTRACT_SLOPE:
            gathered = accumulate(written, at < count, gathered)
    tl.store(partials + row, tl.sum(total.to(tl.float64)))
    if ACTION >= _SUBTRACT_SLOPE:
        store_sums(sums + 4 * row, gathered)


@triton.jit
def _fours(block):  # type: ignore[no-untyped-def]
    return tl.reshape(block, (block.shape[0] // 4, 4))


@triton.jit
def accumulate(weights, mask, sums):  # type: ignore[no-untyped-def]
    """Add a block of float32 weights to (sum |w|, sum w^2, zeros, bits of max |w|)."""
    sum_abs, sum_sq, zeros, largest = sums
    magnitude = tl.abs(weights)
    empty = magnitude == 0
    if mask is not None:
        empty = empty & mask
        magnitude = tl.where(mask, magnitude, 0.0)
    # The four that a thread loads at once become one, so that accumulators take a quarter of the registers.
    zeros += tl.sum(_fours(empty.to(tl.int32)), axis=1)
    value = _fours(magnitude.to(tl.float64))
    sum_abs += tl.sum(value, axis=1)
    sum_sq += tl.sum(value * value, axis=1)
    # The bits of a float >= 0 are ordered as it is, with NaN above infinity.
    largest = tl.maximum(largest, tl.max(_fours(magnitude.to(tl.int32, bitcast=True)), axis=1))
    return sum_abs, sum_sq, zeros, largest


@triton.jit
def no_sums(BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """What :func:`accumulate` begins with."""
    none = tl.zeros((BLOCK // 4,), tl.float64)
    return none, none, tl.zeros((BLOCK // 4,), tl.int32), tl.zeros((BLOCK // 4,), tl.int32)


@triton.jit
def store_sums(row, sums):  # type: ignore[no-untyped-def]
    """Write what :func:`accumulate` gathered into four float64."""
    sum_abs, sum_sq, zeros, largest = sums
    tl.store(row, tl.sum(sum_abs))
    tl.store(row + 1, tl.sum(sum_sq))
    tl.store(row + 2, tl.sum(zeros).to(tl.float64))
    tl.store(row + 3, tl.max(largest).to(tl.float32, bitcast=True).to(tl.float64))


@triton.jit(do_not_specialize=["first"])
def moments(chunks, addresses, sums, first, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum |w|, sum w^2, zeros and max |w| of a chunk."""
    row = tl.program_id(0).to(tl.int64) + first
    count = tl.load(chunks + 3 * row).to(tl.int32)
    tensor, begin = tl.load(chunks + 3 * row + 1), tl.load(chunks + 3 * row + 2)
    weights = tensor_at(addresses, tensor, begin, 0, 1, WEIGHT, ALIGNED)
    offsets = tl.arange(0, BLOCK)
    gathered = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        gathered = accumulate(tl.load(weights + start + offsets).to(tl.float32), None, gathered)
    if full < count:
        at = full + offsets
        gathered = accumulate(tl.load(weights + at, mask=at < count).to(tl.float32), at < count, gathered)
    store_sums(sums + 4 * row, gathered)


@triton.jit
def add_up(partials, bounds, sums, COLUMNS: tl.constexpr, SUMMED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add up the rows of each tensor in order; the columns from ``SUMMED`` on take their maximum instead."""
    tensor = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(bounds + 2 * tensor), tl.load(bounds + 2 * tensor + 1)
    offsets = tl.arange(0, 256)
    for column in tl.static_range(COLUMNS):
        total = tl.zeros((256,), tl.float64)
        largest = tl.zeros((256,), tl.int64)  # of bits, as above
        for start in range(begin, end, 256):
            at = start + offsets
            value = tl.load(partials + at * COLUMNS + column, mask=at < end, other=0.0)
            if column < SUMMED:
                total += value
            else:
                largest = tl.maximum(largest, value.to(tl.int64, bitcast=True))
        result = tl.sum(total) if column < SUMMED else tl.max(largest).to(tl.float64, bitcast=True)
        tl.store(sums + tensor * COLUMNS + column, result)
