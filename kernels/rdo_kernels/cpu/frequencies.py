"""Integer frequencies for range coders, compiled by numba.

Rounded operations are + - * / alone, which IEEE 754 defines to the bit: every machine finds the same frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}


@njit(**_OPTIONS)
def _share(fair):  # type: ignore[no-untyped-def]
    """The largest f >= 1 for which slot number f saves a symbol at least 1 / fair of its code length, in nats.

    The f-th slot saves log(f / (f - 1)), so f grows to f + 1 where fair * log((f + 1) / f) reaches 1: a little below
    f + 1/2.
    """
    share = max(np.int64(1), np.int64(fair + 0.5))
    z = 1.0 / (2.0 * share + 1.0)
    z2 = z * z
    # log((f + 1) / f) = 2 atanh(1 / (2f + 1))
    gain = 2.0 * z * (1.0 + z2 * (1 / 3 + z2 * (1 / 5 + z2 * (1 / 7 + z2 * (1 / 9 + z2 / 11)))))
    return share + 1 if fair * gain >= 1.0 else share


@njit(**_OPTIONS)
def _filled(counts, scale):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(counts.size):
        total += _share(counts[i] * scale)
    return total


@njit(**_OPTIONS)
def normalise(counts, precision):  # type: ignore[no-untyped-def]
    """Frequencies >= 1 (int64 [K]) with the sum 2**precision for which the symbols' code length is least.

    ``counts`` are int64 [K], 1 <= K <= 2**precision, each > 0. Slots go one by one to where they save most; that ends
    at one threshold for all symbols, which bisection finds. Of equal claims the first ones are met.
    """
    slots = np.int64(1) << precision
    total = np.int64(0)
    for i in range(counts.size):
        total += counts[i]
    low, high = 0.0, 2.0 * (slots + counts.size) / total
    while True:
        middle = 0.5 * (low + high)
        if middle <= low or middle >= high:
            break
        filled = _filled(counts, middle)
        if filled <= slots:
            low = middle
            if filled == slots:
                break
        else:
            high = middle
    frequencies = np.empty(counts.size, np.int64)
    left = slots
    for i in range(counts.size):
        frequencies[i] = _share(counts[i] * low)
        left -= frequencies[i]
    for i in range(counts.size):
        if left and _share(counts[i] * high) > frequencies[i]:
            frequencies[i] += 1
            left -= 1
    return frequencies


@njit(**_OPTIONS)
def cost(counts, precision):  # type: ignore[no-untyped-def]
    """Bits that the symbols of these counts take with the best frequencies, and those of the frequencies as numbers."""
    frequencies = normalise(counts, precision)
    bits = 0.0
    for i in range(counts.size):
        bits += counts[i] * (precision - math.log2(frequencies[i]))
        rest = frequencies[i]
        while rest:
            bits += 8.0
            rest >>= 7
    return bits
