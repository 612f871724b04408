"""Segmented rANS on a GPU: a warp decodes a segment, a lane of the stream in each of its lanes.

Legend: ``indices`` tells which entry a slot belongs to, 1 or 2 bytes each; an entry (uint64) is
``symbol << 32 | start << 16 | frequency``. Both are small enough for the cache next to a processor, where it matters
how many lines a warp touches. Words wait in registers, three to a lane, the last loaded long before it is needed:
``now`` and ``soon`` are searched, ``later`` only moves up.

Damaged streams are decoded like any other: every address is bounded by its table, its segment or its output, and what
comes out is disowned by the segment's flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.gpu.decoding import (
    COLUMNS,
    INDEX_TYPES,
    TYPES,
    Launch,
    aligned,
    by_row,
    count_ones,
    grouped,
    joined,
    rows_of,
    run,
    target_of,
    write,
)
from rdo_kernels.streams import MAX_SYMBOL, RansStream, Rows

_COLUMNS = COLUMNS + 8
_LOW = tl.constexpr(1 << 16)
_MAX_SYMBOL = tl.constexpr(MAX_SYMBOL)


@triton.jit
def _load_words(words, start, count, lanes):  # type: ignore[no-untyped-def]
    """The next word for each lane, as it stands: converting it here would wait for it."""
    return tl.load(words + start + lanes, mask=start + lanes < count, other=0)


@triton.jit
def _escaped_symbols(chosen, number, escapes):  # type: ignore[no-untyped-def]
    """The escaped symbols of these numbers, and whether they are out of range."""
    words, count, width, low = escapes
    bit = number.to(tl.int64) * width
    word = bit >> 5
    shift = (bit & 31).to(tl.uint32)
    first = tl.load(words + word, mask=chosen & (word < count), other=0)
    second = tl.load(words + word + 1, mask=chosen & (word + 1 < count), other=0)
    value = ((first >> shift) | ((second << 1) << (31 - shift))) & (0xFFFFFFFF >> (32 - width).to(tl.uint32))
    symbol = low + value.to(tl.int64)
    return symbol.to(tl.int32), chosen & ((symbol > _MAX_SYMBOL) | (symbol < -_MAX_SYMBOL))


@triton.jit
def _round(  # type: ignore[no-untyped-def]
    lane_states,
    queue,
    taken,
    at,
    mask,
    bit,
    tables,
    words,
    escapes,
    target,
    OUT: tl.constexpr,
    BY_ROW: tl.constexpr,
    LANES: tl.constexpr,
):
    """Decode and write one symbol of each lane; ``mask`` is None in a full round.

    ``lane_states`` are (states, whether something was wrong); ``queue`` is (now, soon, later, where in ``now`` the next
    word is, where ``later`` ends); ``taken`` counts escaped symbols; ``bit`` is the lane's own. Lanes that take a word
    are numbered by the sum of their bits: that and a count of bits are one instruction each, a running sum is ten.
    """
    state, wrong = lane_states
    now, soon, later, position, loaded = queue
    indices, entries, precision, slots, escape = tables
    before = bit - 1
    slot = state & slots
    index = tl.load(indices + slot)
    entry = tl.load(entries + index)
    low = entry.to(tl.uint32)
    symbol = (entry >> 32).to(tl.uint32).to(tl.int32, bitcast=True)
    moved = (low & 0xFFFF) * (state >> precision) + slot - (low >> 16)
    short = moved < _LOW
    escaped = index.to(tl.int32) == escape
    if mask is not None:
        moved = tl.where(mask, moved, state)
        short = short & mask
        escaped = escaped & mask

    needed = tl.sum(tl.where(short, bit, 0))
    lanes = tl.arange(0, LANES)
    place = (position + count_ones(needed & before)) & (LANES - 1)
    # Of two words in a lane the round can reach only one: the first, unless it has been taken.
    word = tl.gather(tl.where(lanes < position, soon, now), place, 0)
    state = tl.where(short, (moved << 16) | word, moved)
    position += count_ones(needed)
    if position >= LANES:
        now = soon
        soon = later.to(tl.uint32)
        later = _load_words(words[0], loaded, words[1], lanes)
        position -= LANES
        loaded += LANES

    escaping = tl.sum(tl.where(escaped, bit, 0))
    if escaping != 0:
        found, outside = _escaped_symbols(escaped, taken + count_ones(escaping & before), escapes)
        symbol = tl.where(escaped, found, symbol)
        wrong = wrong | outside
        taken += count_ones(escaping)
    write(symbol, at, mask, target, OUT, BY_ROW)
    return (state, wrong), (now, soon, later, position, loaded), taken


@triton.jit
def rans(  # type: ignore[no-untyped-def]
    segments, flags, INDEX: tl.constexpr, OUT: tl.constexpr, BY_ROW: tl.constexpr, LANES: tl.constexpr
):
    """Decode a segment; its flag (int32) becomes 1 if nothing was wrong."""
    program = tl.program_id(0).to(tl.int64)
    row = segments + 15 * program
    count = tl.load(row).to(tl.int32)
    states = tl.load(row + 1).to(tl.pointer_type(tl.uint32))
    target = target_of(row, OUT, BY_ROW)
    escaped, width = tl.load(row + 11), tl.load(row + 12)
    escape_words = (escaped * width + 31) >> 5
    escapes = (states + LANES, escape_words, width, tl.load(row + 13))
    words = ((states + LANES + escape_words).to(tl.pointer_type(tl.uint16)), tl.load(row + 14).to(tl.int32))
    precision = tl.load(row + 9).to(tl.uint32)
    tables = (
        tl.load(row + 7).to(tl.pointer_type(INDEX)),
        tl.load(row + 8).to(tl.pointer_type(tl.uint64)),
        precision,
        (tl.full((), 1, tl.uint32) << precision) - 1,
        tl.load(row + 10).to(tl.int32),
    )
    lanes = tl.arange(0, LANES)
    bit = tl.full((LANES,), 1, tl.uint32) << lanes.to(tl.uint32)
    lane_states = (tl.load(states + lanes), tl.zeros((LANES,), tl.int1))
    queue = (
        _load_words(words[0], 0, words[1], lanes).to(tl.uint32),
        _load_words(words[0], LANES, words[1], lanes).to(tl.uint32),
        _load_words(words[0], 2 * LANES, words[1], lanes),
        0,
        3 * LANES,
    )
    taken = 0
    whole = count // LANES * LANES
    for number in range(whole // LANES):
        start = number * LANES
        lane_states, queue, taken = _round(
            lane_states, queue, taken, start + lanes, None, bit, tables, words, escapes, target, OUT, BY_ROW, LANES
        )
    if whole < count:
        at = whole + lanes
        lane_states, queue, taken = _round(
            lane_states, queue, taken, at, at < count, bit, tables, words, escapes, target, OUT, BY_ROW, LANES
        )

    used = queue[4] - 3 * LANES + queue[3]
    padding = tl.load(words[0] + used, mask=used < words[1], other=0)
    bits = escaped * width
    last = tl.load(escapes[0] + (bits >> 5), mask=(bits & 31) != 0, other=0) >> (bits & 31).to(tl.uint32)
    wrong = tl.sum(((lane_states[0] != _LOW) | lane_states[1]).to(tl.int32))
    right = (wrong == 0) & (((used + 1) >> 1) << 1 == words[1]) & (padding == 0) & (taken == escaped) & (last == 0)
    tl.store(flags + program, right.to(tl.int32))


def decode(streams: Sequence[RansStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Tensor]:
    """Decode every stream into its output; for each the flags of its segments (int32, 1: nothing was wrong)."""
    return run(launches(streams, outs, steps))


def launches(streams: Sequence[RansStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Launch]:
    """What decodes these streams: a launch for each type of output, kind of steps and of table, and number of lanes."""
    narrow = [len(stream.frequencies) <= 256 for stream in streams]
    dtypes, lanes = [out.dtype for out in outs], [stream.lanes for stream in streams]
    found = []
    for key, numbers in grouped(zip(narrow, dtypes, by_row(steps), lanes, strict=True)).items():
        some = [streams[number] for number in numbers]
        device = outs[numbers[0]].device
        payloads = [aligned(stream.payload) for stream in some]
        tables = [_tables(stream, np.uint8 if key[0] else np.uint16) for stream in some]
        indices, at_indices = joined([table[0] for table in tables], device)
        entries, at_entries = joined([table[1] for table in tables], device)
        parts = []
        for place, (number, stream) in enumerate(zip(numbers, some, strict=True)):
            part = rows_of(stream, payloads[place], outs[number], steps[number], _COLUMNS)
            part[:, 7:11] = at_indices[place], at_entries[place], stream.precision, stream.escape
            part[:, 11] = stream.escapes()
            part[:, 12:14] = stream.escape_width, stream.escape_low
            part[:, 14] = stream.words()
            parts.append(part)
        constants = INDEX_TYPES[indices.dtype], TYPES[key[1]], *key[2:]
        found.append(Launch.of(rans, constants, parts, numbers, (indices, entries, *payloads)))
    return found


def _tables(stream: RansStream, dtype: type[np.unsignedinteger[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The entry of each slot, [2^precision], and symbol, start and frequency of each entry."""
    frequencies = stream.frequencies
    symbols = np.append(stream.values, np.zeros(int(stream.escape >= 0), np.int32)).astype(np.int64)
    entries = symbols << 32 | np.cumsum(frequencies) - frequencies << 16 | frequencies
    return np.repeat(np.arange(len(frequencies)).astype(dtype), frequencies), entries
