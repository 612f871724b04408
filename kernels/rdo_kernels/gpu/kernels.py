"""The Triton kernels of the rate term: one program for each chunk of at most 65,536 weights.

Legend: a row of ``chunks`` is (count, tensor, address of the weights, address of another tensor) in int64. A row of
``laws`` is (theta of the device function, scale, factor, floor) in float32, one for each tensor. All arithmetic is in
float32, sums over a chunk and beyond in float64 and in a fixed order.
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
def tensor_at(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _act(  # type: ignore[no-untyped-def]
    weights, others, mask, theta, scale, factor, floor, function: tl.constexpr, ACTION: tl.constexpr
):
    """Do one block's share of the action and return its bits; ``mask`` is None in a full block."""
    w = tl.load(weights, mask=mask).to(tl.float32)
    bits, slope = function(w, theta)
    if ACTION == _ADD_SLOPE:
        total = tl.load(others, mask=mask).to(tl.float32) + scale * slope
        tl.store(others, total.to(others.dtype.element_ty), mask=mask)
    elif ACTION == _SUBTRACT_SLOPE:
        tl.store(weights, (w - scale * slope).to(weights.dtype.element_ty), mask=mask)
    elif ACTION != _RATE:
        shrink = scale * tl.abs(slope)
        if ACTION == _SHRINK_SCALED:
            shrink = shrink / (tl.sqrt(tl.load(others, mask=mask).to(tl.float32)) * factor + floor)
        left = tl.abs(w) - shrink
        left = tl.where(left <= 0, 0.0, left)
        tl.store(weights, tl.where(w < 0, -left, left).to(weights.dtype.element_ty), mask=mask)
    if mask is not None:
        bits = tl.where(mask, bits, 0.0)
    return bits


@triton.jit
def rate(  # type: ignore[no-untyped-def]
    chunks,
    laws,
    partials,
    function: tl.constexpr,
    PARAMETERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    OTHER: tl.constexpr,
    ACTION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rate of a chunk into ``partials`` (float64), and the action, in the same pass."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(chunks + 4 * row).to(tl.int32)
    law = laws + tl.load(chunks + 4 * row + 1) * (PARAMETERS + 3)
    weights = tensor_at(tl.load(chunks + 4 * row + 2), WEIGHT, ALIGNED)
    others = tensor_at(tl.load(chunks + 4 * row + 3), OTHER, ALIGNED)
    theta = law_of(law, PARAMETERS)
    scale, factor, floor = tl.load(law + PARAMETERS), tl.load(law + PARAMETERS + 1), tl.load(law + PARAMETERS + 2)
    offsets = tl.arange(0, BLOCK)
    bits = tl.zeros((BLOCK,), tl.float32)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):  # without masks, so that loads can be wide
        at = start + offsets
        bits += _act(weights + at, others + at, None, theta, scale, factor, floor, function, ACTION)
    if full < count:
        at = full + offsets
        bits += _act(weights + at, others + at, at < count, theta, scale, factor, floor, function, ACTION)
    tl.store(partials + row, tl.sum(bits.to(tl.float64)))


@triton.jit
def accumulate(weights, mask, sums):  # type: ignore[no-untyped-def]
    """Add a block of float32 weights to (sum |w|, sum w^2, zeros, bits of max |w|)."""
    sum_abs, sum_sq, zeros, largest = sums
    magnitude = tl.abs(weights)
    empty = magnitude == 0
    if mask is not None:
        empty = empty & mask
        magnitude = tl.where(mask, magnitude, 0.0)
    zeros += empty.to(tl.int32)
    value = magnitude.to(tl.float64)
    # The bits of a float >= 0 are ordered as it is, with NaN above infinity.
    largest = tl.maximum(largest, magnitude.to(tl.int32, bitcast=True))
    return sum_abs + value, sum_sq + value * value, zeros, largest


@triton.jit
def no_sums(BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """What :func:`accumulate` begins with."""
    none = tl.zeros((BLOCK,), tl.float64)
    return none, none, tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)


@triton.jit
def store_sums(row, sums):  # type: ignore[no-untyped-def]
    """Write what :func:`accumulate` gathered into four float64."""
    sum_abs, sum_sq, zeros, largest = sums
    tl.store(row, tl.sum(sum_abs))
    tl.store(row + 1, tl.sum(sum_sq))
    tl.store(row + 2, tl.sum(zeros).to(tl.float64))
    tl.store(row + 3, tl.max(largest).to(tl.float32, bitcast=True).to(tl.float64))


@triton.jit
def moments(chunks, partials, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum |w|, sum w^2, zeros and max |w| of a chunk into ``partials`` (float64 [rows, 4])."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(chunks + 3 * row).to(tl.int32)
    weights = tensor_at(tl.load(chunks + 3 * row + 2), WEIGHT, ALIGNED)
    offsets = tl.arange(0, BLOCK)
    sums = no_sums(BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        sums = accumulate(tl.load(weights + start + offsets).to(tl.float32), None, sums)
    if full < count:
        at = full + offsets
        sums = accumulate(tl.load(weights + at, mask=at < count).to(tl.float32), at < count, sums)
    store_sums(partials + 4 * row, sums)


@triton.jit
def add_up(partials, bounds, sums, COLUMNS: tl.constexpr, SUMMED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add up the rows of each tensor in order; the columns from ``SUMMED`` on take their maximum instead."""
    tensor = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(bounds + tensor), tl.load(bounds + tensor + 1)
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
