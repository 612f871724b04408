"""Prefix codes on a CPU, compiled by numba: bits are written most significant first, the last byte padded with zeros.

Decoders return the number of bits read, or -1 when the payload is too short or not a code. They read from a copy of
the payload with eight zero bytes appended, so that a 64-bit window never leaves it.

Each encoder writes out its bits in its own loop: shared, as a compiled function, that was 1.4 to 4 times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}

LOOKUP_BITS = 11
"""Huffman codes of at most this length are decoded by one look-up."""


def padded(payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The payload and eight zero bytes."""
    return np.concatenate([payload, np.zeros(8, np.uint8)])


@njit(**_OPTIONS)
def encode_table(indices, codes, lengths, out):  # type: ignore[no-untyped-def]
    """Write ``codes[i]`` (uint64) of ``lengths[i]`` <= 56 bits for every index."""
    window, filled, position = np.uint64(0), 0, 0
    for i in range(indices.size):
        index = indices[i]
        length = lengths[index]
        window = (window << np.uint64(length)) | codes[index]
        filled += length
        while filled >= 8:
            filled -= 8
            out[position] = np.uint8((window >> np.uint64(filled)) & np.uint64(255))
            position += 1
    if filled:
        out[position] = np.uint8((window << np.uint64(8 - filled)) & np.uint64(255))


@njit(**_OPTIONS)
def encode_fixed(numbers, width, out):  # type: ignore[no-untyped-def]
    """Write uint32 numbers of ``width`` <= 32 bits each."""
    window, filled, position = np.uint64(0), 0, 0
    for i in range(numbers.size):
        window = (window << np.uint64(width)) | np.uint64(numbers[i])
        filled += width
        while filled >= 8:
            filled -= 8
            out[position] = np.uint8((window >> np.uint64(filled)) & np.uint64(255))
            position += 1
    if filled:
        out[position] = np.uint8((window << np.uint64(8 - filled)) & np.uint64(255))


@njit(**_OPTIONS)
def _window(data, position):  # type: ignore[no-untyped-def]
    """At least 57 bits from a bit position, at the top of a uint64."""
    byte = position >> 3
    window = np.uint64(0)
    for i in range(8):
        window = (window << np.uint64(8)) | np.uint64(data[byte + i])
    return window << np.uint64(position & 7)


@njit(**_OPTIONS)
def decode_fixed(data, total_bits, width, out):  # type: ignore[no-untyped-def]
    """Read numbers of ``width`` <= 32 bits into ``out`` (uint32)."""
    if out.size * width > total_bits:
        return np.int64(-1)
    position = 0
    shift = np.uint64(64 - width)
    for i in range(out.size):
        out[i] = np.uint32(_window(data, position) >> shift)
        position += width
    return np.int64(position)


@njit(**_OPTIONS)
def decode_exp_golomb(data, total_bits, k, out):  # type: ignore[no-untyped-def]
    """Read EGk numbers into ``out`` (uint32)."""
    position = np.int64(0)
    for i in range(out.size):
        if position >= total_bits:
            return np.int64(-1)
        window = _window(data, position)
        zeros = np.int64(0)
        probe = window
        if probe >> np.uint64(32) == np.uint64(0):
            return np.int64(-1)  # numbers have at most 32 bits, so at most 31 zeros
        if probe >> np.uint64(48) == np.uint64(0):
            zeros += 16
            probe <<= np.uint64(16)
        if probe >> np.uint64(56) == np.uint64(0):
            zeros += 8
            probe <<= np.uint64(8)
        if probe >> np.uint64(60) == np.uint64(0):
            zeros += 4
            probe <<= np.uint64(4)
        if probe >> np.uint64(62) == np.uint64(0):
            zeros += 2
            probe <<= np.uint64(2)
        if probe >> np.uint64(63) == np.uint64(0):
            zeros += 1
        length = 2 * zeros + 1 + k
        if position + length > total_bits:
            return np.int64(-1)
        if length > 57:
            window = _window(data, position + zeros)
        else:
            window <<= np.uint64(zeros)
        number = (window >> np.uint64(63 - zeros - k)) - (np.uint64(1) << np.uint64(k))
        if number > np.uint64(0xFFFFFFFF):
            return np.int64(-1)
        out[i] = np.uint32(number)
        position += length
    return position


@njit(**_OPTIONS)
def decode_huffman(data, total_bits, lookup, first_code, first_index, counts, order, longest, out):  # type: ignore[no-untyped-def]
    """Read canonical Huffman codes into ``out`` (uint32 indices).

    ``lookup`` holds ``index << 6 | length`` for every prefix of LOOKUP_BITS bits, or 0 where the code is longer;
    ``first_code``, ``first_index`` and ``counts`` are per length, ``order`` maps canonical positions to indices.
    """
    position = np.int64(0)
    lookup_shift = np.uint64(64 - 11)
    for i in range(out.size):
        if position >= total_bits:
            return np.int64(-1)
        window = _window(data, position)
        entry = lookup[window >> lookup_shift]
        length = np.int64(entry & np.uint32(63))
        if length:
            out[i] = entry >> np.uint32(6)
        else:
            found = False
            for candidate in range(12, longest + 1):
                offset = np.int64(window >> np.uint64(64 - candidate)) - first_code[candidate]
                if 0 <= offset < counts[candidate]:
                    out[i] = order[first_index[candidate] + offset]
                    length = np.int64(candidate)
                    found = True
                    break
            if not found:
                return np.int64(-1)
        position += length
        if position > total_bits:
            return np.int64(-1)
    return position


@njit(**_OPTIONS)
def huffman_lengths(counts):  # type: ignore[no-untyped-def]
    """Code length of each of K >= 2 symbols whose counts are ascending (two-queue construction)."""
    size = counts.size
    weight = np.empty(2 * size - 1, np.int64)
    parent = np.zeros(2 * size - 1, np.int64)
    weight[:size] = counts
    leaf, inner = 0, size
    for node in range(size, 2 * size - 1):
        total = np.int64(0)
        for _ in range(2):
            if leaf < size and (inner >= node or weight[leaf] <= weight[inner]):
                total += weight[leaf]
                parent[leaf] = node
                leaf += 1
            else:
                total += weight[inner]
                parent[inner] = node
                inner += 1
        weight[node] = total
    depth = np.zeros(2 * size - 1, np.uint8)
    for node in range(2 * size - 3, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return depth[:size]
