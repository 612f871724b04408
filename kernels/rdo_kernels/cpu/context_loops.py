"""The model of the coder "context" on a CPU, compiled by numba: adaptive counters, mixed; integers only.

docs/coders.md ("context") is the specification. One function holds the model for both directions, so that they cannot
differ.
"""

# mypy: disable-error-code="assignment, call-overload, operator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from rdo_kernels.cpu.context_tables import LEVEL, RATE, SQUASH, SQUASH_REACH, STRETCH
from rdo_kernels.cpu.range_coder import WHOLE, carry, narrow, put, shortest, word_at

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}

MAX_MAGNITUDE = 2**30
TOO_LONG, BEYOND, ALTERED = -1, -2, -3
_BINS = 16
"""Decisions of a context: magnitude > 0, > 1, ..., > 14; the last place is not used."""
_ESCAPE = _BINS - 1
_INPUTS = 4
_LEARNING = 10
_LIMIT = 255
_WEIGHT = 17694
_HALF = 1 << 15
_ONE = 1 << 16
_LARGEST = 31
"""Magnitudes are taken as at most this in averages."""
_MAX_EXTRA = 31
_PAIRS, _RECENT, _COLUMN, _SIGNS = 48 * _BINS, 624 * _BINS, 648 * _BINS, 696 * _BINS
"""Where the counters of each kind begin; those of row and column together at 0."""
_COUNTERS = _SIGNS + 375 + 225 + 51 + 75


@njit(**_OPTIONS)
def _mix(counters, places, weights, chosen, inputs):  # type: ignore[no-untyped-def]
    """The weighted sum of what the counters at ``places`` say, stretched; leaves that in ``inputs``."""
    total = np.int64(_HALF)
    for k in range(_INPUTS):
        inputs[k] = STRETCH[counters[places[k]] >> 20]
        total += np.int64(inputs[k]) * np.int64(weights[chosen + k])
    return np.int64(SQUASH[min(max(total >> 16, -SQUASH_REACH), SQUASH_REACH - 1) + SQUASH_REACH])


@njit(**_OPTIONS)
def _learn(counters, places, weights, chosen, inputs, bit, probability):  # type: ignore[no-untyped-def]
    error = ((bit << 16) - probability) * _LEARNING
    for k in range(_INPUTS):
        weights[chosen + k] += (np.int64(inputs[k]) * error + (1 << 19)) >> 20
        counter = np.int64(counters[places[k]])
        n, p = counter & 1023, counter >> 10
        p += (((bit << 22) - bit - p) * RATE[n]) >> 16
        counters[places[k]] = (p << 10) | min(n + 1, _LIMIT)


@njit(**_OPTIONS)
def _towards(average, value, seen):  # type: ignore[no-untyped-def]
    """An average of values times 2^16, after one more; it saw ``seen`` before, of which at most 255 count."""
    return average + (((np.int64(value) << 16) - average) * RATE[min(seen, 255)] >> 16)


@njit(**_OPTIONS)
def _steps(average, size, limit):  # type: ignore[no-untyped-def]
    """An average of signs in steps of 2^size, rounded, from 0 (-limit or less) to 2 limit."""
    return min(max(limit + ((average + (1 << (size - 1))) >> size), 0), 2 * limit)


@njit(**_OPTIONS)
def code(decoding, symbols, row_length, column, shift, data):  # type: ignore[no-untyped-def]
    """Encode a segment into ``data``, or decode it from there into ``symbols``.

    The first symbol is in ``column`` of its row; the low ``shift`` bits of magnitudes are not modelled. Returns the
    bytes that it takes (decoding: and zeros may follow), or an error below 0.
    """
    slots = min(row_length, symbols.size)
    column_magnitude = np.full(slots, _ONE, np.int64)
    column_sign = np.zeros(slots, np.int64)
    above = np.zeros(slots, np.int8)
    counters = np.full(_COUNTERS, 1 << 31, np.uint32)
    weights = np.full(_BINS * _INPUTS, _WEIGHT, np.int32)
    escapes = np.full(_MAX_EXTRA, _HALF, np.int64)
    inputs, places = np.empty(_INPUTS, np.int32), np.empty(_INPUTS, np.int64)

    low, width, ahead, position = np.uint64(0), WHOLE, np.uint64(0), np.int64(0)
    if decoding:
        ahead, position = (word_at(data, 0) << np.uint64(32)) | word_at(data, 4), np.int64(8)
    everywhere = row_magnitude = np.int64(_ONE)
    recent = row_sign = agreement = left = np.int64(0)
    in_row = rows = slot = np.int64(0)
    value = magnitude = high = np.int64(0)
    for i in range(symbols.size):
        level_row, level_column = LEVEL[row_magnitude >> 9], LEVEL[column_magnitude[slot] >> 9]
        joint = min(max(level_row + level_column - LEVEL[everywhere >> 9], 0), 95)
        places[0] = (joint >> 1) * _BINS
        places[1] = _PAIRS + ((level_row >> 2) * 24 + (level_column >> 2)) * _BINS
        places[2] = _RECENT + (LEVEL[recent >> 9] >> 2) * _BINS
        places[3] = _COLUMN + (level_column >> 1) * _BINS
        if not decoding:
            value = np.int64(symbols[i])
            magnitude = abs(value)
            high = magnitude >> shift
        unary = np.int64(0)
        while unary < _ESCAPE:
            probability = _mix(counters, places, weights, unary * _INPUTS, inputs)
            bit = np.int64(high > unary)
            bit, low, width, ahead, position = narrow(decoding, bit, probability, low, width, ahead, position, data)
            _learn(counters, places, weights, unary * _INPUTS, inputs, bit, probability)
            if bit == 0:
                break
            unary += 1
            for k in range(_INPUTS):
                places[k] += 1
        rest, extra = high - _ESCAPE + 1, np.int64(0)
        while unary == _ESCAPE:
            bit = np.int64((rest >> extra) > 1)
            bit, low, width, ahead, position = narrow(decoding, bit, escapes[extra], low, width, ahead, position, data)
            escapes[extra] += (_ONE - escapes[extra]) >> 5 if bit else -(escapes[extra] >> 5)  # stays in 31..65505
            if bit == 0:
                break
            extra += 1
            if extra == _MAX_EXTRA:
                return BEYOND
        raw = np.int64(1)
        for k in range(extra - 1, -1, -1):
            bit, low, width, ahead, position = narrow(
                decoding, (rest >> k) & 1, _HALF, low, width, ahead, position, data
            )
            raw = (raw << 1) | bit
        if decoding:
            high = unary if unary < _ESCAPE else raw - 1 + _ESCAPE
        raw = high
        for k in range(shift - 1, -1, -1):
            bit, low, width, ahead, position = narrow(
                decoding, (magnitude >> k) & 1, _HALF, low, width, ahead, position, data
            )
            raw = (raw << 1) | bit
        magnitude = raw
        if magnitude > MAX_MAGNITUDE:
            return BEYOND
        known, sign, up = min(high, _LARGEST), np.int64(0), np.int64(above[slot])
        if magnitude:
            lean = _steps(column_sign[slot], 12, 12)
            places[0] = _SIGNS + (lean * 5 + min(known, 4)) * 3 + left + 1
            places[1] = _SIGNS + 375 + lean * 9 + _steps(row_sign, 13, 4)
            places[2] = _SIGNS + 600 + _steps(agreement, 12, 8) * 3 + up + 1
            places[3] = _SIGNS + 651 + lean * 3 + up + 1
            probability = _mix(counters, places, weights, _ESCAPE * _INPUTS, inputs)
            bit = np.int64(value < 0)
            bit, low, width, ahead, position = narrow(decoding, bit, probability, low, width, ahead, position, data)
            _learn(counters, places, weights, _ESCAPE * _INPUTS, inputs, bit, probability)
            sign = 1 - 2 * bit
            column_sign[slot] = _towards(column_sign[slot], sign, rows + 2)
            row_sign = _towards(row_sign, sign, in_row + 4)
            if up:
                agreement = _towards(agreement, sign * up, in_row + 4)
        if decoding:
            symbols[i] = sign * magnitude
        column_magnitude[slot] = _towards(column_magnitude[slot], known, rows + 1)
        row_magnitude = _towards(row_magnitude, known, in_row + 4)
        everywhere += ((known << 16) - everywhere) * RATE[min(i, 1023)] >> 16
        recent += ((known << 16) - recent) >> 4
        above[slot] = left = sign
        in_row += 1
        slot = slot + 1 if slot + 1 < slots else 0
        column += 1
        if column == row_length:
            column = in_row = left = np.int64(0)
            rows += 1
    # Sixteen zeros: what is truncated or damaged hardly ever ends with them.
    for _ in range(16):
        bit, low, width, ahead, position = narrow(decoding, np.int64(0), _HALF, low, width, ahead, position, data)
        if bit:
            return ALTERED
    step = shortest(low, width)
    if decoding:
        return position if step == ahead else ALTERED
    if position + 8 > data.size:
        return TOO_LONG
    low += step
    if low < step:
        carry(data, position)
    put(low >> np.uint64(32), data, position)
    put(low, data, position + 4)
    position += 8
    while position and data[position - 1] == 0:
        position -= 1
    return position
