"""Exp-Golomb codes in lanes on a CPU, compiled by numba.

Number i belongs to lane i mod L. Each lane is a sequence of bits of its own, most significant first within uint32
words, its last word filled with zeros. EGk(n) is ``(n >> k) + 1`` after one zero less than it has bits, then the k low
bits of n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}


@njit(**_OPTIONS)
def _bits(number):  # type: ignore[no-untyped-def]
    # Compiled to one instruction that counts leading zeros.
    bits = 0
    while number:
        bits += 1
        number >>= np.uint64(1)
    return bits


@njit(**_OPTIONS)
def lane_bits(numbers, k, bits):  # type: ignore[no-untyped-def]
    """Fill ``bits`` (int64 [L]) with the length of each lane for uint32 numbers."""
    lanes = bits.size
    bits[:] = 0
    lane = 0
    for i in range(numbers.size):
        bits[lane] += 2 * _bits((np.uint64(numbers[i]) >> np.uint64(k)) + np.uint64(1)) - 1 + k
        lane = lane + 1 if lane + 1 < lanes else 0


@njit(**_OPTIONS)
def encode(numbers, k, lanes, words):  # type: ignore[no-untyped-def]
    """Write the lanes of uint32 numbers one after another into ``words`` (uint32); it must have room."""
    position = 0
    low_mask = (np.uint64(1) << np.uint64(k)) - np.uint64(1)
    for lane in range(lanes):
        window, filled = np.uint64(0), 0
        for i in range(lane, numbers.size, lanes):
            number = np.uint64(numbers[i])
            high = (number >> np.uint64(k)) + np.uint64(1)
            bits = _bits(high)
            if 2 * bits - 1 + k <= 32:
                window = (window << np.uint64(2 * bits - 1 + k)) | (high << np.uint64(k)) | (number & low_mask)
                filled += 2 * bits - 1 + k
                if filled >= 32:
                    filled -= 32
                    words[position] = np.uint32(window >> np.uint64(filled))
                    position += 1
            else:
                # Zeros, high and low bits in turn: no two of them with what is pending need fit into 64 bits.
                for part in range(3):
                    length = bits - 1 if part == 0 else bits if part == 1 else k
                    value = np.uint64(0) if part == 0 else high if part == 1 else number & low_mask
                    window = (window << np.uint64(length)) | value
                    filled += length
                    while filled >= 32:
                        filled -= 32
                        words[position] = np.uint32((window >> np.uint64(filled)) & np.uint64(0xFFFFFFFF))
                        position += 1
        if filled:
            words[position] = np.uint32((window << np.uint64(32 - filled)) & np.uint64(0xFFFFFFFF))
            position += 1
    return position


@njit(**_OPTIONS)
def decode(words, bits, k, out):  # type: ignore[no-untyped-def]
    """Read lanes of ``bits`` (int64 [L]) bits each from ``words`` (uint32, three zeros appended) into ``out`` (uint32).

    The lanes must be within the words. Returns False if a lane is not exactly its numbers and zeros.
    """
    lanes = bits.size
    first = np.int64(0)
    for lane in range(lanes):
        position = 32 * first
        end = position + bits[lane]
        for i in range(lane, out.size, lanes):
            word = position >> 5
            offset = np.uint64(position & 31)
            window = (np.uint64(words[word]) << np.uint64(32)) | np.uint64(words[word + 1])
            window = (window << offset) | (np.uint64(words[word + 2]) >> (np.uint64(32) - offset))
            if window >> np.uint64(32) == np.uint64(0):
                return False  # numbers have at most 32 bits, so at most 31 zeros
            zeros = 64 - _bits(window)
            length = 2 * zeros + 1 + k
            if position + length > end:
                return False
            if length <= 64:
                window <<= np.uint64(zeros)
            else:
                word = (position + zeros) >> 5
                offset = np.uint64((position + zeros) & 31)
                window = (np.uint64(words[word]) << np.uint64(32)) | np.uint64(words[word + 1])
                window = (window << offset) | (np.uint64(words[word + 2]) >> (np.uint64(32) - offset))
            number = (window >> np.uint64(63 - zeros - k)) - (np.uint64(1) << np.uint64(k))
            if number > np.uint64(0xFFFFFFFF):
                return False
            out[i] = np.uint32(number)
            position += length
        if position != end:
            return False
        if end & 31 and words[end >> 5] << np.uint32(end & 31) & np.uint32(0xFFFFFFFF):
            return False
        first += (bits[lane] + 31) >> 5
    return True
