"""Context modelling on a CPU, compiled by numba: adaptive binary range coding with logistic mixing, integers only.

docs/coders.md ("context") is the specification. One function holds the model for both directions, so that they cannot
differ. Nothing depends on the machine: there is no floating point, also not in the tables.
"""

# mypy: disable-error-code="assignment, call-overload"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}

MAX_MAGNITUDE = 2**30
BINS = 16
"""Decisions of a context: magnitude > 0, > 1, ..., > 14; the last is not used."""
ESCAPE = BINS - 1
INPUTS = 5
SQUASH_REACH = 2816
_UNIT = 256
_LENGTHS = 32
_LEARNING = 10
_LIMIT = 255
_WEIGHT = 65536 * 3 // 10
_CONTEXTS = 760
_WORD = np.uint64(1 << 32)

TOO_LONG, BEYOND, ALTERED = -1, -2, -3


def _squash_table() -> NDArray[np.int32]:
    """2^16 / (1 + exp(-x / 256)), x from -SQUASH_REACH to SQUASH_REACH - 1, rounded down, within 16..65520."""
    # exp(1/256) by its series, as an integer over 2^96.
    one = 1 << 96
    term, ratio = one, one
    for n in range(1, 20):
        term //= _UNIT * n
        ratio += term
    power, table = one, []
    for _ in range(SQUASH_REACH + 1):
        table.append((power << 16) // (power + one))
        power = power * ratio >> 96
    rising = [65536 - p for p in table[:0:-1]] + table[:-1]
    return np.array([min(max(p, 16), 65520) for p in rising], np.int32)


def _stretch_table(squash: NDArray[np.int32]) -> NDArray[np.int32]:
    """For each probability p / 4096 the least x with squash(x) >= 16 p + 8."""
    found = np.searchsorted(squash, 16 * np.arange(4096) + 8)
    return np.minimum(found, 2 * SQUASH_REACH - 1).astype(np.int32) - np.int32(SQUASH_REACH)


def _level_table() -> NDArray[np.int32]:
    """8 log2 of 1 + an integer below 4096, rounded down: the most n with 2^n <= (1 + x)^8."""
    return np.array([((1 + x) ** 8).bit_length() - 1 for x in range(4096)], np.int32)


SQUASH = _squash_table()
STRETCH = _stretch_table(SQUASH)
LEVEL = _level_table()
RATE = np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], np.int32)


@njit(**_OPTIONS)
def _carry(data, position):  # type: ignore[no-untyped-def]
    while position > 0:
        position -= 1
        data[position] += np.uint8(1)
        if data[position]:
            return


@njit(**_OPTIONS)
def _word(data, position):  # type: ignore[no-untyped-def]
    """Four bytes, most significant first; behind the last byte there are zeros."""
    word = np.uint64(0)
    for k in range(position, position + 4):
        word = (word << np.uint64(8)) | np.uint64(data[k] if k < data.size else np.uint8(0))
    return word


@njit(**_OPTIONS)
def _put(word, data, position):  # type: ignore[no-untyped-def]
    if position + 4 <= data.size:
        for k in range(4):
            data[position + k] = np.uint8((word >> np.uint64(24 - 8 * k)) & np.uint64(255))


@njit(**_OPTIONS)
def _narrow(decoding, bit, probability, low, width, ahead, position, data):  # type: ignore[no-untyped-def]
    """Code one bit, which is 1 with ``probability`` / 2^16. The code is in [low, low + width), ``ahead`` of low."""
    bound = (width >> np.uint64(16)) * np.uint64(probability)
    if decoding:
        bit = np.int64(1) if ahead < bound else np.int64(0)
    if bit:
        width = bound
    else:
        low += bound
        width -= bound
        if decoding:
            ahead -= bound
        elif low < bound and position <= data.size:
            _carry(data, position)
    if width < _WORD:
        if decoding:
            ahead = (ahead << np.uint64(32)) | _word(data, position)
        else:
            _put(low >> np.uint64(32), data, position)
        position += 4
        low <<= np.uint64(32)
        width <<= np.uint64(32)
    return bit, low, width, ahead, position


@njit(**_OPTIONS)
def _shortest(low, width):  # type: ignore[no-untyped-def]
    """How far from low, less than width, the number with the most zero bytes at its end is."""
    for zeros in range(8, 0, -1):
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * zeros)
        step = (np.uint64(0) - low) & mask
        if step < width:
            return step
    return np.uint64(0)


@njit(**_OPTIONS)
def _mix(table, places, weights, chosen, stretch, inputs):  # type: ignore[no-untyped-def]
    """The weighted sum of what the counters ``places`` say, stretched; leaves that in ``inputs``."""
    total = np.int64(1) << 15
    for k in range(INPUTS):
        inputs[k] = stretch[table[places[k]] >> 20]
        total += np.int64(inputs[k]) * np.int64(weights[chosen + k])
    return min(max(total >> 16, -SQUASH_REACH), SQUASH_REACH - 1)


@njit(**_OPTIONS)
def _learn(table, places, weights, chosen, inputs, rate, bit, probability):  # type: ignore[no-untyped-def]
    error = ((bit << 16) - probability) * _LEARNING
    for k in range(INPUTS):
        weights[chosen + k] += (np.int64(inputs[k]) * error + (1 << 19)) >> 20
        counter = np.int64(table[places[k]])
        n = counter & 1023
        p = counter >> 10
        p += (((bit << 22) - bit - p) * rate[n]) >> 16
        table[places[k]] = (p << 10) | min(n + 1, _LIMIT)


@njit(**_OPTIONS)
def code(decoding, symbols, row_length, column, shift, tables, data):  # type: ignore[no-untyped-def]
    """Encode or decode one segment, of which the first symbol is in ``column``.

    Returns the bytes used, or an error below 0.
    """
    squash, stretch, level, rate = tables
    columns = np.zeros(min(row_length, symbols.size), np.int32)
    above = np.zeros(columns.size, np.uint8)
    table = np.full(_CONTEXTS * BINS, 1 << 31, np.uint32)
    weights = np.full(BINS * INPUTS, _WEIGHT, np.int32)
    escapes = np.full(_LENGTHS, 1 << 15, np.int64)
    inputs = np.empty(INPUTS, np.int32)
    places = np.empty(INPUTS, np.int64)
    bases = np.empty(INPUTS, np.int64)

    low, width, ahead, position = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0), np.int64(0)
    if decoding:
        ahead = (_word(data, 0) << np.uint64(32)) | _word(data, 4)
        position = np.int64(8)
    row, everywhere = np.int64(0), np.int64(1 << 16)
    in_row, rows, slot = np.int64(0), np.int64(0), np.int64(0)
    left = left2 = np.int64(0)
    value = magnitude = high = np.int64(0)
    for i in range(symbols.size):
        average, up = np.int64(columns[slot]), np.int64(above[slot])
        level_all, level_row = level[everywhere >> 9], level[row >> 9]
        level_column = level[average >> 9] if rows else level_all
        joint = min(max(level_row + level_column - level_all, 0), 95)
        bases[0] = joint >> 1
        bases[1] = 48 + (level_row >> 2) * 24 + (level_column >> 2)
        bases[2] = 624 + min(2 * left + left2 + up, 23)
        bases[3] = 648 + (level_column >> 1)
        bases[4] = 696 + min(left, 3) * 16 + min(up, 3) * 4 + min(left2, 3)
        if not decoding:
            value = np.int64(symbols[i])
            magnitude = abs(value)
            high = magnitude >> shift
        b = np.int64(0)
        while b < ESCAPE:
            for k in range(INPUTS):
                places[k] = bases[k] * BINS + b
            total = _mix(table, places, weights, b * INPUTS, stretch, inputs)
            probability = np.int64(squash[total + SQUASH_REACH])
            bit = np.int64(1) if high > b else np.int64(0)
            bit, low, width, ahead, position = _narrow(decoding, bit, probability, low, width, ahead, position, data)
            _learn(table, places, weights, b * INPUTS, inputs, rate, bit, probability)
            if bit == 0:
                break
            b += 1
        rest = high - ESCAPE + 1
        extra = np.int64(0)
        if b == ESCAPE:
            while True:
                bit = np.int64(1) if (rest >> extra) > 1 else np.int64(0)
                bit, low, width, ahead, position = _narrow(
                    decoding, bit, escapes[extra], low, width, ahead, position, data
                )
                escapes[extra] += ((bit << 16) - escapes[extra]) >> 5
                if bit == 0:
                    break
                extra += 1
                if extra == _LENGTHS:
                    return BEYOND
        # Bits as likely one way as the other: those below the highest of an escape, those below high, the sign.
        raw = np.int64(1)
        for k in range(extra - 1, -1, -1):
            bit, low, width, ahead, position = _narrow(
                decoding, (rest >> k) & 1, 1 << 15, low, width, ahead, position, data
            )
            raw = (raw << 1) | bit
        if decoding:
            high = b if b < ESCAPE else raw - 1 + ESCAPE
            magnitude = high
        for k in range(shift - 1, -1, -1):
            bit, low, width, ahead, position = _narrow(
                decoding, (magnitude >> k) & 1, 1 << 15, low, width, ahead, position, data
            )
            if decoding:
                magnitude = (magnitude << 1) | bit
        if magnitude:
            bit = np.int64(1) if value < 0 else np.int64(0)
            bit, low, width, ahead, position = _narrow(decoding, bit, 1 << 15, low, width, ahead, position, data)
            if decoding:
                value = -magnitude if bit else magnitude
        else:
            value = np.int64(0)
        if decoding:
            if magnitude > MAX_MAGNITUDE:
                return BEYOND
            symbols[i] = value
        known = min(high, 31)
        columns[slot] = average + (((known << 16) - average) * rate[min(rows, 255)] >> 16)
        row += ((known << 16) - row) * rate[min(in_row + 8, 255)] >> 16
        everywhere += ((known << 16) - everywhere) * rate[min(i, 1023)] >> 16
        above[slot] = known
        left2, left = left, known
        in_row += 1
        slot = slot + 1 if slot + 1 < columns.size else 0
        column += 1
        if column == row_length:
            column = in_row = left = left2 = np.int64(0)
            rows += 1
    for _ in range(16):
        bit, low, width, ahead, position = _narrow(decoding, np.int64(0), 1 << 15, low, width, ahead, position, data)
        if bit:
            return ALTERED
    step = _shortest(low, width)
    if decoding:
        return position if step == ahead else ALTERED
    if position + 8 > data.size:
        return TOO_LONG
    low += step
    if low < step:
        _carry(data, position)
    _put(low >> np.uint64(32), data, position)
    _put(low & np.uint64(0xFFFFFFFF), data, position + 4)
    position += 8
    while position and data[position - 1] == 0:
        position -= 1
    return position
