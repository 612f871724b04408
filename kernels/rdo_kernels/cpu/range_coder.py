"""Binary range coding on a CPU, compiled by numba: 64-bit numbers, 32 bits out at a time, carries into what is written.

A code is a number below 1, its bytes the most significant first, zeros behind the last. What is left of the interval
that holds it is ``low`` to ``low + width``, in units that shrink by 2^32 each time 4 bytes go out.
"""

# mypy: disable-error-code="assignment, operator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}
WHOLE = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD = np.uint64(1 << 32)


@njit(**_OPTIONS)
def carry(data, position):  # type: ignore[no-untyped-def]
    while position > 0:
        position -= 1
        data[position] += np.uint8(1)
        if data[position]:
            return


@njit(**_OPTIONS)
def word_at(data, position):  # type: ignore[no-untyped-def]
    """Four bytes, most significant first; behind the last byte there are zeros."""
    word = np.uint64(0)
    for k in range(position, position + 4):
        word = (word << np.uint64(8)) | np.uint64(data[k] if k < data.size else np.uint8(0))
    return word


@njit(**_OPTIONS)
def put(word, data, position):  # type: ignore[no-untyped-def]
    if position + 4 <= data.size:
        for k in range(4):
            data[position + k] = np.uint8((word >> np.uint64(24 - 8 * k)) & np.uint64(255))


@njit(**_OPTIONS)
def narrow(decoding, bit, probability, low, width, ahead, position, data):  # type: ignore[no-untyped-def]
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
            carry(data, position)
    if width < _WORD:
        if decoding:
            ahead = (ahead << np.uint64(32)) | word_at(data, position)
        else:
            put(low >> np.uint64(32), data, position)
        position += 4
        low <<= np.uint64(32)
        width <<= np.uint64(32)
    return bit, low, width, ahead, position


@njit(**_OPTIONS)
def shortest(low, width):  # type: ignore[no-untyped-def]
    """How far from low, less than width, the number with the most zero bytes at its end is."""
    for zeros in range(8, 0, -1):
        mask = WHOLE >> np.uint64(64 - 8 * zeros)
        step = (np.uint64(0) - low) & mask
        if step < width:
            return step
    return np.uint64(0)
