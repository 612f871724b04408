"""Static range asymmetric numeral systems on a CPU, compiled by numba.

States are 32 bits in [2^16, 2^32), renormalised by 16-bit words. Symbol i belongs to lane i mod L; all lanes share one
sequence of words, which the decoder reads forward. Duda 2013 (arXiv 1311.2540), interleaved as in Giesen 2014
(arXiv 1402.3392).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}

LOW = 1 << 16
"""Lower bound of a state, and every lane's state before the first symbol is encoded."""


@njit(**_OPTIONS)
def encode(indices, frequencies, starts, inverses, precision, states, words):  # type: ignore[no-untyped-def]
    """Encode uint32 indices from the last to the first; fill ``states`` (uint32 [L]) and the end of ``words`` (uint16).

    ``inverses`` are ``1 / frequencies`` in float64. Returns the position in ``words`` at which the words begin.
    """
    lanes = states.size
    position = words.size
    for lane in range(lanes):
        states[lane] = np.uint32(65536)
    lane = indices.size % lanes
    for i in range(indices.size - 1, -1, -1):
        lane = lane - 1 if lane > 0 else lanes - 1
        index = indices[i]
        frequency = np.int64(frequencies[index])
        state = np.int64(states[lane])
        if state >= frequency << (32 - precision):
            position -= 1
            words[position] = np.uint16(state & 0xFFFF)
            state >>= 16
        # A float64 product is within one of the quotient, and far faster than a division.
        quotient = np.int64(np.float64(state) * inverses[index])
        remainder = state - quotient * frequency
        if remainder < 0:
            quotient -= 1
            remainder += frequency
        elif remainder >= frequency:
            quotient += 1
            remainder -= frequency
        states[lane] = np.uint32((quotient << precision) + remainder + np.int64(starts[index]))
    return position


@njit(**_OPTIONS)
def decode(words, states, slot_values, slot_steps, precision, out):  # type: ignore[no-untyped-def]
    """Decode into ``out`` (int32); ``states`` (uint32 [L]) end at LOW if all is well.

    For each slot, ``slot_values`` is the symbol and ``slot_steps`` (uint32) is ``(frequency - 1) << 16 | offset``.
    Returns the number of words read, or -1 when there are too few.
    """
    lanes = states.size
    mask = np.uint32((1 << precision) - 1)
    shift = np.uint32(precision)
    position = 0
    size = words.size
    whole = out.size - out.size % lanes
    for start in range(0, whole, lanes):
        if position + lanes > size:
            # Close to the end every word is checked.
            for lane in range(lanes):
                state = states[lane]
                slot = state & mask
                out[start + lane] = slot_values[slot]
                step = slot_steps[slot]
                state = ((step >> np.uint32(16)) + np.uint32(1)) * (state >> shift) + (step & np.uint32(0xFFFF))
                if state < np.uint32(65536):
                    if position >= size:
                        return -1
                    state = (state << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                states[lane] = state
        else:
            for lane in range(lanes):
                state = states[lane]
                slot = state & mask
                out[start + lane] = slot_values[slot]
                step = slot_steps[slot]
                state = ((step >> np.uint32(16)) + np.uint32(1)) * (state >> shift) + (step & np.uint32(0xFFFF))
                if state < np.uint32(65536):
                    state = (state << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                states[lane] = state
    for i in range(whole, out.size):
        lane = i - whole
        state = states[lane]
        slot = state & mask
        out[i] = slot_values[slot]
        step = slot_steps[slot]
        state = ((step >> np.uint32(16)) + np.uint32(1)) * (state >> shift) + (step & np.uint32(0xFFFF))
        if state < np.uint32(65536):
            if position >= size:
                return -1
            state = (state << np.uint32(16)) | np.uint32(words[position])
            position += 1
        states[lane] = state
    return position
