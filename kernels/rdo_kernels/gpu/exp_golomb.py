"""Segmented Exp-Golomb codes on a GPU: a warp decodes a segment, a bitstream in each of its lanes.

Legend: a lane holds the next 65 bits or more of its bitstream in ``(high, low, later)``, of which it has used ``skip``
bits, 0 to 31. Almost all codes fit into 32 bits, ``high`` and ``low`` shifted by that; the others take a branch.

Damaged streams are decoded like any other: every address is bounded by its table, its segment or its output, and what
comes out is disowned by the segment's flag.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from rdo_kernels.gpu.decoding import (
    COLUMNS,
    TYPES,
    Launch,
    aligned,
    by_row,
    grouped,
    joined,
    rows_of,
    run,
    target_of,
    write,
)
from rdo_kernels.streams import MAX_SYMBOL, ExpGolombStream, Rows

_COLUMNS = COLUMNS + 4
_LARGEST = tl.constexpr(2 * MAX_SYMBOL)
_NONE = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _joined(high, low, skip):  # type: ignore[no-untyped-def]
    """32 bits from bit ``skip`` of two words; one instruction, and right for 0."""
    return (high << skip) | ((low >> 1) >> (skip ^ 31))


@triton.jit
def _shift(window, moving, data, end):  # type: ignore[no-untyped-def]
    """Move the lanes that have used a word on by one."""
    high, low, later, skip, loaded = window
    high = tl.where(moving, low, high)
    low = tl.where(moving, later, low)
    later = tl.load(data + loaded, mask=moving & (loaded < end), other=later)
    return high, low, later, tl.where(moving, skip - 32, skip), loaded + moving.to(tl.uint32)


@triton.jit
def _long(number, length, window, order, data, end):  # type: ignore[no-untyped-def]
    """Numbers of codes longer than 32 bits too, and windows with a word to spare for their length."""
    high, low, later, skip, loaded = window
    long = length > 32
    zeros = (length - 1 - order) >> 1
    begin = skip + zeros
    inner = (begin & 31).to(tl.uint32)
    code = tl.where(begin < 32, _joined(high, low, inner), _joined(low, later, inner))
    possible = zeros + order < 32
    drop = tl.where(possible, 31 - order - zeros, 0).to(tl.uint32)
    one = tl.full((), 1, tl.uint32) << order.to(tl.uint32)
    number = tl.where(long, tl.where(possible, (code >> drop) - one, _NONE), number)
    length = tl.where(long & (zeros > 31), 32, length)  # nothing that follows matters
    moving = skip + length > 63
    window = (high, low, later, tl.where(moving, skip + 32, skip), loaded)
    high, low, later, skip, loaded = _shift(window, moving, data, end)
    return number, tl.where(moving, length - 32, length), (high, low, later, skip, loaded)


@triton.jit
def _round(  # type: ignore[no-untyped-def]
    window,
    largest,
    at,
    mask,
    order,
    data,
    end,
    values,
    known,
    target,
    OUT: tl.constexpr,
    BY_ROW: tl.constexpr,
    RANKED: tl.constexpr,
):
    """Decode and write one symbol of each lane; ``mask`` is None in a full round."""
    top = _joined(window[0], window[1], window[3].to(tl.uint32))
    # The exponent of a float32 tells the leading bit. Without the bit after that, rounding cannot carry into it.
    leading = (top ^ (top & (top >> 1))).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    length = 317 + order - 2 * leading
    one = tl.full((), 1, tl.uint32) << order.to(tl.uint32)
    number = (top >> ((32 - length) & 31).to(tl.uint32)) - one
    if mask is not None:
        length = tl.where(mask, length, 0)
        number = tl.where(mask, number, 0)
    if tl.max(length) > 32:
        number, length, window = _long(number, length, window, order, data, end)
    largest = tl.maximum(largest, number)
    high, low, later, skip, loaded = window
    skip += length
    window = _shift((high, low, later, skip, loaded), skip > 31, data, end)
    if RANKED:
        symbol = tl.load(values + tl.minimum(number, known))
    else:
        symbol = ((number >> 1) ^ (0 - (number & 1))).to(tl.int32, bitcast=True)
    write(symbol, at, mask, target, OUT, BY_ROW)
    return window, largest


@triton.jit
def exp_golomb(  # type: ignore[no-untyped-def]
    segments, flags, OUT: tl.constexpr, BY_ROW: tl.constexpr, RANKED: tl.constexpr, LANES: tl.constexpr
):
    """Decode a segment; its flag (int32) becomes 1 if nothing was wrong."""
    program = tl.program_id(0).to(tl.int64)
    row = segments + 11 * program
    count = tl.load(row).to(tl.int32)
    lengths = tl.load(row + 1).to(tl.pointer_type(tl.uint32))
    target = target_of(row, OUT, BY_ROW)
    words = tl.load(row + 7)
    order = tl.load(row + 8).to(tl.int32)
    values = tl.load(row + 9).to(tl.pointer_type(tl.int32))
    known = tl.load(row + 10).to(tl.uint32)
    data = lengths + LANES
    lanes = tl.arange(0, LANES)
    bits = tl.load(lengths + lanes).to(tl.int64)
    own = (bits + 31) >> 5
    after = tl.cumsum(own, 0)
    end = tl.minimum(after, words).to(tl.uint32)  # below 2^31, and nothing that is added to it can wrap
    begin = tl.minimum(after - own, words).to(tl.uint32)
    window = (
        tl.load(data + begin, mask=begin < end, other=0),
        tl.load(data + begin + 1, mask=begin + 1 < end, other=0),
        tl.load(data + begin + 2, mask=begin + 2 < end, other=0),
        tl.zeros((LANES,), tl.int32),
        begin + 3,
    )
    largest = tl.zeros((LANES,), tl.uint32)
    whole = count // LANES * LANES
    for number in range(whole // LANES):
        start = number * LANES
        window, largest = _round(
            window, largest, start + lanes, None, order, data, end, values, known, target, OUT, BY_ROW, RANKED
        )
    if whole < count:
        at = whole + lanes
        window, largest = _round(
            window, largest, at, at < count, order, data, end, values, known, target, OUT, BY_ROW, RANKED
        )

    used = (window[4] - 3 - begin).to(tl.int64) * 32 + window[3]
    last = tl.load(data + begin + (bits >> 5), mask=((bits & 31) != 0) & (begin + (bits >> 5) < end), other=0)
    padding = last << (bits & 31).to(tl.uint32)
    limit = _LARGEST
    if RANKED:
        limit = known
    wrong = (used != bits) | (padding != 0) | (largest > limit)
    right = (tl.sum(wrong.to(tl.int32)) == 0) & (tl.sum(own) == words)
    tl.store(flags + program, right.to(tl.int32))


def decode(streams: Sequence[ExpGolombStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Tensor]:
    """Decode every stream into its output; for each the flags of its segments (int32, 1: nothing was wrong)."""
    return run(launches(streams, outs, steps))


def launches(streams: Sequence[ExpGolombStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Launch]:
    """What decodes these streams: a launch for each type of output, kind of steps and of table, and number of lanes."""
    ranked = [stream.values is not None for stream in streams]
    dtypes, lanes = [out.dtype for out in outs], [stream.lanes for stream in streams]
    found = []
    for key, numbers in grouped(zip(dtypes, by_row(steps), ranked, lanes, strict=True)).items():
        some = [streams[number] for number in numbers]
        payloads = [aligned(stream.payload) for stream in some]
        tables = [np.zeros(1, np.int32) if stream.values is None else stream.values for stream in some]
        values, at_values = joined(tables, outs[numbers[0]].device)
        parts = []
        for place, (number, stream) in enumerate(zip(numbers, some, strict=True)):
            part = rows_of(stream, payloads[place], outs[number], steps[number], _COLUMNS)
            part[:, 7] = np.diff(stream.offsets) // 4 - stream.lanes
            part[:, 8:] = stream.k, at_values[place], len(tables[place]) - 1
            parts.append(part)
        constants = TYPES[key[0]], *key[1:]
        found.append(Launch.of(exp_golomb, constants, parts, numbers, (values, *payloads)))
    return found
