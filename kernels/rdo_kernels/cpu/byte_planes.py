"""Bytes of numbers whose bits are rotated left by one, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, njit, uint32

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}


@njit(**_OPTIONS)
def take(symbols, width, plane, values):  # type: ignore[no-untyped-def]
    """Write one byte of each symbol, rotated within ``width`` bits, to ``values`` (int32); plane 0 is the lowest."""
    top, shift = uint32(width - 1), uint32(8 * plane)
    for i in range(symbols.size):
        bits = uint32(symbols[i])
        rotated = uint32((bits << uint32(1)) | (bits >> top))
        values[i] = int32((rotated >> shift) & uint32(255))


@njit(**_OPTIONS)
def put(values, out):  # type: ignore[no-untyped-def]
    """Append a byte to the bits of each number, ``out`` (int32); False if one is not between 0 and 255."""
    beyond = uint32(0)
    for i in range(out.size):
        value = uint32(values[i])
        beyond = uint32(beyond | (value >> uint32(8)))
        out[i] = int32(uint32(uint32(out[i]) << uint32(8)) | value)
    return beyond == uint32(0)


@njit(**_OPTIONS)
def put_stored(values, out):  # type: ignore[no-untyped-def]
    """As :func:`put` for uint8 values."""
    for i in range(out.size):
        out[i] = int32(uint32(uint32(out[i]) << uint32(8)) | uint32(values[i]))


@njit(**_OPTIONS)
def rotate_back(out, width):  # type: ignore[no-untyped-def]
    """Undo the rotation of bits, in place."""
    top = uint32(width - 1)
    mask = np.uint32(0xFFFFFFFF) >> uint32(32 - width)
    for i in range(out.size):
        bits = uint32(out[i])
        out[i] = int32(uint32((bits >> uint32(1)) | (bits << top)) & mask)
