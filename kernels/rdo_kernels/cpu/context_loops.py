"""Adaptive binary range coding of symbols in the context of their row and column, compiled by numba.

Integers only, so that every machine decodes the same; docs/coders.md, "context", specifies each step. The encoder and
the decoder are one function: what one does to the model the other does, too.

Legend: an average is that of magnitudes, with 8 binary digits after the point; a level is its logarithm in half
octaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}

LEVELS = 24
DECISIONS = 15
"""Of a magnitude: is it above 0, 1, ... 14? What is left of larger ones follows as an Exp-Golomb code."""
_LARGEST = 255
"""Magnitudes beyond it count as this in averages."""
_MEMORY = 60
"""How many magnitudes an average remembers at most, roughly."""
_ROW_START = 8
"""So many magnitudes is the average of all before a row worth to the average of the row."""
_ALL_MEMORY = 1023
_COUNTED = 255
"""Of the decisions in a context; after them its probability follows the latest as many."""
_HALF, _LEAST = 1 << 15, 16
_MAX_ZEROS = 30
_MAX_SYMBOL = 1 << 30


@njit(**_OPTIONS)
def level(average):  # type: ignore[no-untyped-def]
    """The level of an average: 0 below 1/16, then two to an octave."""
    value = average >> 4
    bits = 0
    while value >> bits:
        bits += 1
    if bits == 0:
        return 0
    half = (value >> (bits - 2)) & 1 if bits > 1 else 0
    return min(2 * bits - 1 + half, LEVELS - 1)


@njit(**_OPTIONS)
def _moved(average, magnitude, seen):  # type: ignore[no-untyped-def]
    """An average of ``seen`` magnitudes with one more; the shift rounds towards minus infinity."""
    return average + (((magnitude << 8) - average) * (65536 // (seen + 2)) >> 16)


@njit(**_OPTIONS)
def _code(decision, probability, state, data):  # type: ignore[no-untyped-def]
    """Encode a decision, or decode one if ``state[4]``; returns it. ``probability``, of 1, is in 65,536ths.

    ``state`` int64: the ends of the interval, the position in the data, what was read, and whether to decode.
    """
    low, high = state[0], state[1]
    middle = low + ((high - low) * probability >> 16)
    if state[4]:
        decision = 1 if state[3] <= middle else 0
    if decision:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        position = state[2]
        if state[4]:
            following = data[position] if position < data.size else np.uint8(0)
            state[3] = ((state[3] << 8) & 0xFFFFFFFF) | np.int64(following)
        else:
            data[position] = np.uint8(high >> 24)
        state[2] = position + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    state[0], state[1] = low, high
    return decision


@njit(**_OPTIONS)
def _code_rest(rest, state, data):  # type: ignore[no-untyped-def]
    """Encode or decode a number >= 0 by EG0, all decisions even; -1 if it is too long."""
    zeros = 0
    if state[4]:
        while _code(0, _HALF, state, data) == 0:
            zeros += 1
            if zeros > _MAX_ZEROS:
                return -1
        value = 1
        for _ in range(zeros):
            value = 2 * value + _code(0, _HALF, state, data)
        return value - 1
    value = rest + 1
    while value >> (zeros + 1):
        zeros += 1
    for _ in range(zeros):
        _code(0, _HALF, state, data)
    for place in range(zeros, -1, -1):
        _code((value >> place) & 1, _HALF, state, data)
    return rest


@njit(**_OPTIONS)
def _room(data, position):  # type: ignore[no-untyped-def]
    """The data, or a copy twice as long if a symbol might not fit."""
    if position + 128 < data.size:
        return data
    longer = np.empty(2 * data.size + 256, np.uint8)
    longer[:position] = data[:position]
    return longer


@njit(**_OPTIONS)
def code(symbols, column, columns, data, decode):  # type: ignore[no-untyped-def]
    """Encode int32 symbols, or decode into them; the first is in ``column`` of ``columns``.

    Returns:
        The data (uint8), and how long they are: when decoding how many bytes were used, or -1 if that cannot have been
        encoded.
    """
    state = np.zeros(5, np.int64)
    state[1] = 0xFFFFFFFF
    if decode:
        state[4] = 1
        for i in range(4):
            state[3] = state[3] << 8 | (np.int64(data[i]) if i < data.size else 0)
        state[2] = 4
    probabilities = np.full(LEVELS * LEVELS * DECISIONS, _HALF, np.int32)
    counts = np.zeros(LEVELS * LEVELS * DECISIONS, np.int32)
    width = min(columns, symbols.size)
    averages, seen = np.zeros(width, np.int64), np.zeros(width, np.int64)
    row, row_seen, every, every_seen = 0, _ROW_START, 0, 0
    place = column if columns <= symbols.size else 0
    for i in range(symbols.size):
        if not decode:
            data = _room(data, state[2])
        elif state[2] > data.size + 4:
            return data, -1
        context = (level(averages[place]) * LEVELS + level(row)) * DECISIONS
        symbol = np.int64(symbols[i])
        magnitude = np.int64(abs(symbol))
        known = 0
        while known < DECISIONS:
            larger = _code(1 if magnitude > known else 0, np.int64(probabilities[context]), state, data)
            probability = np.int64(probabilities[context])
            probability += ((larger << 16) - probability) * (65536 // (counts[context] + 2)) >> 16
            probabilities[context] = np.int32(min(max(probability, _LEAST), 65536 - _LEAST))
            counts[context] += counts[context] < _COUNTED
            if larger == 0:
                break
            known += 1
            context += 1
        if decode:
            magnitude = np.int64(known)
        if known == DECISIONS:
            rest = _code_rest(magnitude - DECISIONS, state, data)
            magnitude = np.int64(DECISIONS + rest)
            if rest < 0 or magnitude > _MAX_SYMBOL:
                return data, -1
        if magnitude > 0:
            negative = _code(1 if symbol < 0 else 0, _HALF, state, data)
            if decode:
                symbols[i] = -magnitude if negative else magnitude
        elif decode:
            symbols[i] = 0
        counted = min(magnitude, _LARGEST)
        averages[place] = _moved(averages[place], counted, seen[place])
        seen[place] += seen[place] < _MEMORY
        row = _moved(row, counted, row_seen)
        row_seen += row_seen < _MEMORY
        every = _moved(every, counted, every_seen)
        every_seen += every_seen < _ALL_MEMORY
        place += 1
        column += 1
        if place == width:
            place = 0
        if column == columns:
            column, row, row_seen = 0, every, _ROW_START
    if decode:
        return data, state[2]
    data = _room(data, state[2])
    for shift in (24, 16, 8, 0):
        data[state[2]] = np.uint8((state[0] >> shift) & 255)
        state[2] += 1
    return data, state[2]
