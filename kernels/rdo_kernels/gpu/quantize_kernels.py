"""The Triton kernels of quantisation.

How the histogram is counted decides the speed, since weights fall on few bins: additions to one address would wait
for one another. So each thread counts the 32 symbols around zero in registers, eight of four bits to an int32: a symbol
is one bit, shifted to its place. After eight weights the counts are split into bytes, and after a program's 32,768
weights those are added up and go to the tensor's histogram. Other symbols are added one by one to bins of the program's
own, which no other program touches. Integers give the same sums in any order.

Legend: rows of ``chunks`` are those of :func:`rdo_kernels.chunks.quantization_table`. B (``BOUND``) is the largest
symbol with a bin of its own; a histogram has 2B + 2 bins, the last for all others. GROUP is 0 where a tensor has one
step, else a divisor of its rows: that many neighbours share a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rdo_kernels.gpu.kernels import pointer_at

SHARE = tl.constexpr(32768)
"""Weights of a program: half a chunk, so that a count of one byte, of 1/256 of them, cannot overflow."""
_NEAR = tl.constexpr(16)
_NONE = tl.constexpr(0x7FFF0000)
"""Stands for the symbol of a weight that has none; narrowed to 8 or 16 bits it is 0, which is what is stored."""
_UP, _DOWN = tl.constexpr(2.0**64), tl.constexpr(2.0**-64)
_SMALL_STEP, _LARGE_STEP = tl.constexpr(2.0**-96), tl.constexpr(2.0**96)
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: a number up to 2^22 is rounded half to even in the sum's lowest bits
INTEGERS = tl.constexpr(8388608.0)  # 2^23, from which all float32 are integers


@triton.jit
def reciprocal(step):  # type: ignore[no-untyped-def]
    """(step, 1 / step, factor): step and weights are multiplied by the factor, so that nothing below overflows."""
    magnitude = tl.abs(step)
    factor = tl.where(magnitude < _SMALL_STEP, _UP, 1.0)
    factor = tl.where(magnitude > _LARGE_STEP, _DOWN, factor)
    return step * factor, tl.div_rn(1.0, step * factor), factor


@triton.jit
def divided(w, step, inverse, factor, FUSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """``w / step`` rounded to float32 as IEEE 754 says, wherever it is between 1/4 and 2^31; NaN for what overflows.

    Two corrections by exact remainders round correctly (Markstein 1990, IBM J. Res. Dev. 34(1)). The compiler's own
    division takes three times the instructions and a branch. Triton's interpreter has no fused multiplication.
    """
    if FUSED:
        w = w * factor
        quotient = w * inverse
        quotient = tl.fma(tl.fma(-quotient, step, w), inverse, quotient)
        return tl.fma(tl.fma(-quotient, step, w), inverse, quotient)
    else:
        return tl.div_rn(w * factor, step)


@triton.jit
def rounded(x, LIMIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The nearest int32 to a float32 of at most LIMIT in absolute value, ties to even."""
    if LIMIT < 4194304:
        return (x + _MAGIC).to(tl.int32, bitcast=True) - 0x4B400000
    else:
        magnitude = tl.abs(x)
        whole = tl.where(magnitude < INTEGERS, (magnitude + INTEGERS) - INTEGERS, magnitude).to(tl.int32)
        return tl.where(x < 0.0, -whole, whole)


@triton.jit
def spread(x, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Repeat each number of [BLOCK / GROUP] for its group: [BLOCK]."""
    return tl.reshape(tl.broadcast_to(x[:, None], (BLOCK // GROUP, GROUP)), (BLOCK,))


@triton.jit
def steps_at(chunk, start, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The step of a block, or the [BLOCK / GROUP] steps of its groups if rows have their own (GROUP > 0)."""
    steps = tl.load(chunk + 4).to(tl.pointer_type(tl.float32))
    if GROUP > 0:
        # In 32 bits: a row has at most 2^30 weights, and rows are counted from the one that the chunk begins in.
        row, first = tl.load(chunk + 5).to(tl.int32), tl.load(chunk + 6).to(tl.int32)
        last = (first + tl.load(chunk).to(tl.int32) - 1) // row
        groups = (first + start + tl.arange(0, BLOCK // GROUP) * GROUP) // row
        return tl.load(steps + tl.minimum(groups, last))
    else:
        return tl.load(steps)


@triton.jit
def _symbols(  # type: ignore[no-untyped-def]
    weights, mask, law, zone, LIMIT: tl.constexpr, GROUP: tl.constexpr, FUSED: tl.constexpr, BLOCK: tl.constexpr
):
    """A block's symbols in int32, ``_NONE`` for weights without one; ``mask`` is None in a full block.

    ``law`` is what :func:`reciprocal` gave for the step, or for the steps of the block's groups.
    """
    w = tl.load(weights, mask=mask).to(tl.float32)
    step, inverse, factor = law
    if GROUP > 0:
        step, inverse = spread(step, GROUP, BLOCK), spread(inverse, GROUP, BLOCK)
        factor = spread(factor, GROUP, BLOCK)
    scaled = divided(w, step, inverse, factor, FUSED)
    magnitude = tl.abs(scaled)
    within = magnitude <= LIMIT
    if LIMIT > 32767:  # a conversion to integers, unlike the bits of a sum, is undefined beyond their range
        scaled = tl.where(within, scaled, 0.0)
    return tl.where(within, rounded(tl.where(magnitude >= zone, scaled, 0.0), LIMIT), _NONE)


@triton.jit
def _tally(tally, bits, eights, EIGHT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add the bits that belong to one eight of symbols: eight neighbours' in four bits each, then split into bytes."""
    sums = tl.sum(tl.reshape(tl.where(eights == EIGHT, bits, 0), (BLOCK // 8, 8)), axis=1)
    return tally[0] + (sums & 0x0F0F0F0F), tally[1] + ((sums >> 4) & 0x0F0F0F0F)


@triton.jit
def _count(symbols, mask, tallies, far, missing, own, BOUND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Count a block: the 32 symbols around zero into ``tallies``, others into the chunk's ``own`` bins.

    ``far`` is set to 1 if there are others, and ``missing`` counts the weights without a symbol.
    """
    shifted = symbols + _NEAR
    bits = tl.full((BLOCK,), 1, tl.int32) << ((shifted << 2) & 28)
    if mask is not None:
        bits = tl.where(mask, bits, 0)
        shifted = tl.where(mask, shifted, 0)
    eights = shifted >> 3
    tallies = (
        _tally(tallies[0], bits, eights, 0, BLOCK),
        _tally(tallies[1], bits, eights, 1, BLOCK),
        _tally(tallies[2], bits, eights, 2, BLOCK),
        _tally(tallies[3], bits, eights, 3, BLOCK),
    )
    if tl.max(shifted.to(tl.uint32, bitcast=True)) >= 2 * _NEAR:  # what follows takes long, but is seldom needed
        others = (shifted < 0) | (shifted >= 2 * _NEAR)
        bins = tl.where(tl.abs(symbols) <= BOUND, symbols + BOUND, 2 * BOUND + 1)
        tl.atomic_add(own + bins, 1, mask=others, sem="relaxed")
        far = 1
        missing += tl.sum((others & (symbols == _NONE)).to(tl.int32))
    return tallies, far, missing


@triton.jit
def _add_bytes(tally, bins):  # type: ignore[no-untyped-def]
    """Add the sums of four counts of a byte each to every second bin."""
    for place in tl.static_range(4):
        total = tl.sum((tally >> (8 * place)) & 255)
        tl.atomic_add(bins + 2 * place, total.to(tl.int64), mask=total > 0, sem="relaxed")


@triton.jit
def _stored(symbols, SYMBOL: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.where(symbols == _NONE, 0, symbols) if tl.int32 == SYMBOL else symbols.to(SYMBOL)


@triton.jit
def quantize(  # type: ignore[no-untyped-def]
    chunks,
    zone,
    own,
    counts,
    lost,
    WEIGHT: tl.constexpr,
    SYMBOL: tl.constexpr,
    LIMIT: tl.constexpr,
    BOUND: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    FUSED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the symbols of half a chunk, and add to its tensor's ``counts`` and ``lost`` (int64).

    ``zone`` (float32 [1]) is half the zero cell's width in steps; ``own`` is int32 [programs, 2B + 2], of zeros.
    """
    index = tl.program_id(0).to(tl.int64)
    chunk = chunks + 7 * (index // 2)
    begin = (index % 2).to(tl.int32) * SHARE
    end = tl.minimum(tl.load(chunk).to(tl.int32), begin + SHARE)
    tensor = tl.load(chunk + 1)
    weights = pointer_at(tl.load(chunk + 2), WEIGHT, ALIGNED)
    symbols = pointer_at(tl.load(chunk + 3), SYMBOL, ALIGNED)
    half = tl.load(zone)
    mine = own + index * (2 * BOUND + 2)
    offsets = tl.arange(0, BLOCK)
    lacking = tl.zeros((BLOCK,), tl.int32)
    none = tl.zeros((BLOCK // 8,), tl.int32)
    tallies = ((none, none), (none, none), (none, none), (none, none))
    far, missing = 0, 0
    if GROUP == 0:
        law = reciprocal(steps_at(chunk, 0, GROUP, BLOCK))
    full = begin + tl.maximum(end - begin, 0) // BLOCK * BLOCK
    for start in range(begin, full, BLOCK):  # without masks, so that loads can be wide
        if GROUP > 0:
            law = reciprocal(steps_at(chunk, start, GROUP, BLOCK))
        at = tl.multiple_of(start, BLOCK) + offsets
        found = _symbols(weights + at, None, law, half, LIMIT, GROUP, FUSED, BLOCK)
        tl.store(symbols + at, _stored(found, SYMBOL))
        if COUNT:
            tallies, far, missing = _count(found, None, tallies, far, missing, mine, BOUND, BLOCK)
        else:
            lacking += (found == _NONE).to(tl.int32)
    if full < end:
        if GROUP > 0:
            law = reciprocal(steps_at(chunk, full, GROUP, BLOCK))
        at = full + offsets
        found = _symbols(weights + at, at < end, law, half, LIMIT, GROUP, FUSED, BLOCK)
        tl.store(symbols + at, _stored(found, SYMBOL), mask=at < end)
        if COUNT:
            tallies, far, missing = _count(found, at < end, tallies, far, missing, mine, BOUND, BLOCK)
        else:
            lacking += ((found == _NONE) & (at < end)).to(tl.int32)
    missing += tl.sum(lacking)
    tl.atomic_add(lost + tensor, missing.to(tl.int64), mask=missing > 0, sem="relaxed")
    if COUNT:
        bins = counts + tensor * (2 * BOUND + 2)
        for group in tl.static_range(4):
            _add_bytes(tallies[group][0], bins + BOUND - _NEAR + 8 * group)
            _add_bytes(tallies[group][1], bins + BOUND - _NEAR + 8 * group + 1)
        if far > 0:
            tl.debug_barrier()  # until all warps have added to the chunk's own bins
            every = tl.arange(0, 2 * BOUND + 2)
            rest = tl.load(mine + every, volatile=True)
            tl.atomic_add(bins + every, rest.to(tl.int64), mask=rest > 0, sem="relaxed")


@triton.jit
def _restore(symbols, weights, mask, steps, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    step = spread(steps, GROUP, BLOCK) if GROUP > 0 else steps
    values = tl.load(symbols, mask=mask).to(tl.float32) * step
    tl.store(weights, values.to(weights.dtype.element_ty), mask=mask)


@triton.jit
def dequantize(  # type: ignore[no-untyped-def]
    chunks,
    WEIGHT: tl.constexpr,
    SYMBOL: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a chunk's weights: symbols times their step, in float32, rounded to the type of the weights."""
    chunk = chunks + 7 * tl.program_id(0).to(tl.int64)
    count = tl.load(chunk).to(tl.int32)
    weights = pointer_at(tl.load(chunk + 2), WEIGHT, ALIGNED)
    symbols = pointer_at(tl.load(chunk + 3), SYMBOL, ALIGNED)
    offsets = tl.arange(0, BLOCK)
    full = count // BLOCK * BLOCK
    for start in range(0, full, BLOCK):
        at = start + offsets
        _restore(symbols + at, weights + at, None, steps_at(chunk, start, GROUP, BLOCK), GROUP, BLOCK)
    if full < count:
        at = full + offsets
        _restore(symbols + at, weights + at, at < count, steps_at(chunk, full, GROUP, BLOCK), GROUP, BLOCK)
