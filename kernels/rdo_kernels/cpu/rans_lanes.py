"""The loops of :mod:`rdo_kernels.cpu.rans` for 32 lanes as vectors, for machines with AVX2 and better with AVX-512.

The streams are the same. With AVX-512, tables of up to 64 symbols stay in vector registers: a binary search over the
starts of the symbols takes six permutations, whatever the precision, where a table of all slots has to be read one lane
at a time. Longer tables, and all tables on other machines, are read so.

Legend: "low" and "high" are the halves of 32 states; "even" and "odd" are the states of the even and the odd lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from rdo_kernels.cpu import rans
from rdo_kernels.cpu.lanes import (
    blend,
    count,
    full,
    full_halves,
    halves_of,
    high_product,
    load,
    load_each,
    load_pairs,
    load_split,
    look_up,
    look_up_pair,
    permutes,
    put,
    saturating_difference,
    select,
    shift_in_sign,
    store_joined,
    take,
    words_of,
)

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}

LANES = 32
FEW = 64
"""Symbols that the registers hold."""

_encode_scalar = rans.encode


def decoding_tables(
    values: NDArray[np.int32], frequencies: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.uint16] | tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """What :func:`decode` looks up.

    For few symbols, uint16 [5, 64], flat: their bounds as a heap, frequencies, starts, and the two halves of the
    values. Node 1 of the heap is the root and 2k, 2k + 1 are the children of k; a node holds the last slot of the
    symbols to its left. Slots and starts have their upper bit flipped, so that they compare as signed. For many: the
    symbol of each slot, and for each symbol frequency, start and value in 16, 16 and 32 bits.
    """
    symbols = len(values)
    if symbols > FEW or not permutes():
        entries = frequencies | starts << 16 | values.astype(np.int64) << 32
        return np.repeat(np.arange(symbols).astype(np.uint16), frequencies), entries.view(np.uint64)
    last = np.full(FEW, 0xFFFF)
    last[: symbols - 1] = starts[1:] - 1
    tables = np.zeros((5, FEW), np.uint16)
    for level in range(6):
        nodes, below = 1 << level, FEW >> level
        tables[0, nodes : 2 * nodes] = last[below // 2 - 1 :: below] ^ 0x8000
    tables[1, :symbols] = frequencies
    tables[2, :symbols] = starts ^ 0x8000
    tables[3, :symbols] = values & 0xFFFF
    tables[4, :symbols] = values >> 16 & 0xFFFF
    return tables.ravel()


def reciprocals(frequencies: NDArray[np.int64], precision: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multiplier m (32 bits) and shift s + 16 d of each frequency: a state x is divided as ``(x + d) * m >> 32 + s``.

    Exact for x < f * 2^(32 - precision), which holds where the encoder divides. With s = floor(log2(f - 1)), m rounded
    down and d = 1 the error stays below 1 / f if f <= 2^(precision - 1); beyond that, either this or m rounded up with
    d = 0 is close enough (Robison 2005, "N-bit unsigned division via N-bit multiply-add").
    """
    shifts = np.frexp((frequencies - 1) | 1)[1].astype(np.int64) - 1
    multipliers = ((1 << (32 + shifts)) - 1) // frequencies
    missing = (1 << (32 + shifts)) - multipliers * frequencies
    up = (frequencies > 1 << (precision - 1)) & (missing * frequencies > 1 << (2 * precision - 1))
    return multipliers + up, shifts + 16 * ~up


def encoding_tables(
    frequencies: NDArray[np.int64], starts: NDArray[np.int64], precision: int
) -> NDArray[np.uint16] | tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """What :func:`encode` looks up.

    For few symbols, uint16 [5, 64], flat: frequencies, starts, the two halves of the multipliers, and the shifts. For
    many: frequency, start and multiplier of each in 16, 16 and 32 bits, and the shifts.
    """
    multipliers, shifts = reciprocals(frequencies, precision)
    if len(frequencies) > FEW or not permutes():
        entries = frequencies | starts << 16 | multipliers << 32
        return entries.view(np.uint64), shifts.astype(np.uint16)
    tables = np.zeros((5, FEW), np.uint16)
    tables[:, : len(frequencies)] = frequencies, starts, multipliers & 0xFFFF, multipliers >> 16, shifts
    return tables.ravel()


def _load(tables: Any) -> Any:
    """Tables of few symbols as five pairs of vectors; those of many as they are."""


@overload(_load)
def _load_typed(tables):  # type: ignore[no-untyped-def]
    if not isinstance(tables, types.Array):
        return lambda tables: tables

    def pairs(tables):  # type: ignore[no-untyped-def]
        return (
            (load(tables, 0), load(tables, 32)),
            (load(tables, 64), load(tables, 96)),
            (load(tables, 128), load(tables, 160)),
            (load(tables, 192), load(tables, 224)),
            (load(tables, 256), load(tables, 288)),
        )

    return pairs


@njit(**_OPTIONS)
def _even_odd(halves):  # type: ignore[no-untyped-def]
    """The even and the odd lanes as words."""
    words = words_of(halves)
    return words & 0xFFFF, words >> 16


@njit(**_OPTIONS)
def _transpose(first, second):  # type: ignore[no-untyped-def]
    """Words of even and of odd lanes from the low and high halves of all lanes, or these from those."""
    return blend(first, second << 16), blend(first >> 16, second)


@njit(**_OPTIONS)
def _join(low, high):  # type: ignore[no-untyped-def]
    """The even and the odd lanes as words, from their low and high halves."""
    return _transpose(words_of(low), words_of(high))


@njit(**_OPTIONS)
def _split(even, odd):  # type: ignore[no-untyped-def]
    """The low and the high halves of all lanes."""
    low, high = _transpose(even, odd)
    return halves_of(low), halves_of(high)


def _find(slots: Any, tables: Any) -> Any:
    """The symbols at slots: low and high halves of their values, their frequencies, and the slots' offsets in them."""


@overload(_find)
def _find_typed(slots, tables):  # type: ignore[no-untyped-def]
    def few(slots, tables):  # type: ignore[no-untyped-def]
        bounds, frequencies, starts, low_values, high_values = tables
        slots = slots ^ 0x8000
        node = full_halves(1)
        for _ in range(5):
            node = shift_in_sign(node, saturating_difference(look_up(bounds[0], node), slots))
        node = shift_in_sign(node, saturating_difference(look_up(bounds[1], node), slots))
        values = look_up_pair(low_values, node), look_up_pair(high_values, node)
        return values, look_up_pair(frequencies, node), slots - look_up_pair(starts, node)

    def many(slots, tables):  # type: ignore[no-untyped-def]
        slot_symbols, entries = tables
        even, odd = _even_odd(slots)
        even_steps, even_values = load_pairs(entries, load_each(slot_symbols, even))
        odd_steps, odd_values = load_pairs(entries, load_each(slot_symbols, odd))
        frequencies, starts = _split(even_steps, odd_steps)
        return _split(even_values, odd_values), frequencies, slots - starts

    return few if len(tables) == 5 else many


@njit(**_OPTIONS)
def _decode_round(low, high, tables, precision, words, position, out, start):  # type: ignore[no-untyped-def]
    """Write ``out[start : start + 32]``; reads ``words[position : position + 32]``, and goes behind those it uses."""
    values, frequencies, offsets = _find(low & (1 << precision) - 1, tables)
    store_joined(out, start, values[0], values[1])
    even, odd = _join(low, high)
    even_frequency, odd_frequency = _even_odd(frequencies)
    even_offset, odd_offset = _even_odd(offsets)
    even = even_frequency * (even >> precision) + even_offset
    odd = odd_frequency * (odd >> precision) + odd_offset
    low, high = _split(even, odd)
    small = high < 1
    return take(words, position, small, low), select(small, low, high), position + count(small)


@njit(**_OPTIONS)
def _decode_rest(words, position, state, values, frequencies, starts, precision, out):  # type: ignore[no-untyped-def]
    """Less than a round; returns the position behind the words it read, which may lie behind the last one."""
    for lane in range(out.size):
        slot = np.int64(state[lane]) & ((1 << precision) - 1)
        symbol, end = 0, starts.size
        while end - symbol > 1:
            middle = (symbol + end) >> 1
            symbol, end = (middle, end) if starts[middle] <= slot else (symbol, middle)
        out[lane] = values[symbol]
        following = frequencies[symbol] * (np.int64(state[lane]) >> precision) + slot - starts[symbol]
        if following < rans.LOW:
            if position < words.size:
                following = following << 16 | np.int64(words[position])
            position += 1
        state[lane] = np.uint32(following)
    return position


@njit(**_OPTIONS)
def _last_words(words, position):  # type: ignore[no-untyped-def]
    """The words from ``position`` on, fewer than 32, and zeros behind them, so that whole vectors can be read."""
    last = np.zeros(3 * LANES, np.uint16)
    for i in range(position, words.size):
        last[i - position] = words[i]
    return last


@njit(**_OPTIONS)
def _decode_from(start, words, position, state, tables, values, frequencies, starts, precision, out):  # type: ignore[no-untyped-def]
    """Decode what follows the first ``start`` symbols of a segment; returns as :func:`_decode_rest`."""
    loaded = _load(tables)
    low, high = load_split(state, 0)
    end = out.size - out.size % LANES
    source, base = words, 0
    while start < end:
        if position + LANES > source.size:
            if base + position > words.size:
                return base + position
            source, base, position = _last_words(words, position), position, 0
        low, high, position = _decode_round(low, high, loaded, precision, source, position, out, start)
        start += LANES
    store_joined(state, 0, low, high)
    return _decode_rest(words, base + position, state, values, frequencies, starts, precision, out[end:])


@njit(**_OPTIONS)
def _decode_two(words, positions, states, tables, precision, size, out):  # type: ignore[no-untyped-def]
    """Decode two segments while whole vectors of words are left; returns how many symbols of each."""
    loaded = _load(tables)
    low, high = load_split(states[0], 0)
    low2, high2 = load_split(states[1], 0)
    position, position2 = positions[0], positions[1]
    start = 0
    while start + LANES <= size and max(position, position2) + LANES <= words.size:
        low, high, position = _decode_round(low, high, loaded, precision, words, position, out, start)
        low2, high2, position2 = _decode_round(low2, high2, loaded, precision, words, position2, out, size + start)
        start += LANES
    store_joined(states[0], 0, low, high)
    store_joined(states[1], 0, low2, high2)
    positions[0], positions[1] = position, position2
    return start


@njit(**_OPTIONS)
def decode(words, positions, states, tables, values, frequencies, starts, precision, size, out):  # type: ignore[no-untyped-def]
    """Decode segments of ``size`` symbols, the last of which may be shorter, two at a time: each waits for the other.

    ``words`` uint16; ``positions`` int64 [S]: where the words of each segment begin, then where they ended, perhaps
    behind the last word; ``states`` uint32 [S, 32], left as they end; ``tables`` by :func:`decoding_tables` from
    ``values`` (int32), ``frequencies`` (int64), whose sum must be 2^precision, and their ``starts``; ``out`` int32.
    """
    done = 0
    for segment in range(positions.size):
        if segment % 2 == 0:
            both = slice(segment, segment + 2)
            done = 0
            if (segment + 2) * size <= out.size:
                done = _decode_two(words, positions[both], states[both], tables, precision, size, out[segment * size :])
        part = out[segment * size : min((segment + 1) * size, out.size)]
        positions[segment] = _decode_from(
            done, words, positions[segment], states[segment], tables, values, frequencies, starts, precision, part
        )


def _model(indices: Any, tables: Any) -> Any:
    """Of 32 symbols: frequencies, starts, multipliers (low and high halves) and shifts."""


@overload(_model)
def _model_typed(indices, tables):  # type: ignore[no-untyped-def]
    def few(indices, tables):  # type: ignore[no-untyped-def]
        frequencies, starts, low_multipliers, high_multipliers, shifts = tables
        multipliers = look_up_pair(low_multipliers, indices), look_up_pair(high_multipliers, indices)
        return (
            look_up_pair(frequencies, indices),
            look_up_pair(starts, indices),
            multipliers,
            look_up_pair(shifts, indices),
        )

    def many(indices, tables):  # type: ignore[no-untyped-def]
        entries, shifts = tables
        even, odd = _even_odd(indices)
        even_steps, even_multipliers = load_pairs(entries, even)
        odd_steps, odd_multipliers = load_pairs(entries, odd)
        frequencies, starts = _split(even_steps, odd_steps)
        even_shifts, odd_shifts = load_each(shifts, even), load_each(shifts, odd)
        return frequencies, starts, _split(even_multipliers, odd_multipliers), _split(even_shifts, odd_shifts)[0]

    return few if len(tables) == 5 else many


@njit(**_OPTIONS)
def _push(state, frequency, start, multiplier, shift, precision):  # type: ignore[no-untyped-def]
    """Put a symbol into sixteen states that have room for it."""
    quotient = high_product(state + (shift >> 4), multiplier) >> (shift & 15)
    return state + quotient * (full(1 << precision) - frequency) + start


@njit(**_OPTIONS)
def encode(indices, frequencies, starts, inverses, tables, precision, states, words):  # type: ignore[no-untyped-def]
    """As :func:`rdo_kernels.cpu.rans.encode`, for 32 lanes and uint16 indices; ``tables`` by :func:`encoding_tables`.

    There must be room for as many words as symbols.
    """
    end = indices.size - indices.size % LANES
    position = _encode_scalar(indices[end:], frequencies, starts, inverses, precision, states, words)
    loaded = _load(tables)
    low, high = load_split(states, 0)
    for i in range(end - LANES, -1, -LANES):
        frequency, start, multiplier, shift = _model(load(indices, i), loaded)
        large = high >> (16 - precision) >= frequency
        # Fills all of the 32 words before ``position``, of which the last are meant; there are as many symbols left.
        put(words, position, large, low)
        position -= count(large)
        even, odd = _join(select(large, high, low), select(large, full_halves(0), high))
        even_frequency, odd_frequency = _even_odd(frequency)
        even_start, odd_start = _even_odd(start)
        even_multiplier, odd_multiplier = _join(multiplier[0], multiplier[1])
        even_shift, odd_shift = _even_odd(shift)
        low, high = _split(
            _push(even, even_frequency, even_start, even_multiplier, even_shift, precision),
            _push(odd, odd_frequency, odd_start, odd_multiplier, odd_shift, precision),
        )
    store_joined(states, 0, low, high)
    return position
