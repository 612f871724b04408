"""Frequencies that follow from a few integers (docs/coders.md, "Implied frequencies"), compiled by numba.

Integers alone: no machine's arithmetic matters. Fixed-point numbers have 30 bits behind the point, and no product
reaches 2^63.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}
_ONE = 1 << 30
_MOST_BITS = 64 * _ONE
"""An exponent is cut off here: all weights so small are equal."""
_WEIGHT_BITS = 20
_FACTOR_BITS = 32


def _powers() -> tuple[int, ...]:
    """2^(1/2), 2^(1/4), ..., 2^(2^-30), each rounded to 30 bits from a chain of square roots with 60."""
    roots = [1 << 61]
    for _ in range(30):
        roots.append(math.isqrt(roots[-1] << 60))
    return tuple((root + (1 << 29)) >> 30 for root in roots[1:])


POWERS = np.array(_powers(), np.int64)


@njit(**_OPTIONS)
def _log2(number):  # type: ignore[no-untyped-def]
    """Of an integer, 1 to 2^30; rounded down, to about two units."""
    whole = np.int64(0)
    while number >> (whole + 1):
        whole += 1
    mantissa = number << (30 - whole)
    logarithm = whole
    for _ in range(30):
        mantissa = mantissa * mantissa >> 30
        bit = mantissa >> 31
        mantissa >>= bit
        logarithm = logarithm << 1 | bit
    return logarithm


@njit(**_OPTIONS)
def _exp2(fraction):  # type: ignore[no-untyped-def]
    """2 to the power of a fixed-point fraction: 1 to 2."""
    power = np.int64(_ONE)
    for i in range(30):
        if fraction >> (29 - i) & 1:
            power = (power * POWERS[i] + (1 << 29)) >> 30
    return power


@njit(**_OPTIONS)
def weights(low, center, shape, scale, spike, out):  # type: ignore[no-untyped-def]
    """Fill ``out``, int64 [K], with the weights of symbols ``low`` to ``low + K - 1``: at most 2^20, at least one that.

    ``2^20 * 2^-(|k - center / 8| / 2^(scale / 32))^(shape / 64)``, times a power of two. With ``spike`` the symbol 0
    has none: -1. At least one symbol must have one; all must be within 2^16 of the center.
    """
    least = np.int64(_MOST_BITS)
    for i in range(out.size):
        distance = abs(8 * (low + i) - center)
        bits = np.int64(0)
        if distance:
            exponent = shape * (_log2(distance) - 3 * _ONE - (scale << 25)) >> 6
            whole = exponent >> 30
            if whole >= 6:
                bits = np.int64(_MOST_BITS)
            elif whole > -31:
                power = _exp2(exponent & (_ONE - 1))
                bits = power << whole if whole >= 0 else power >> -whole
        if spike and low + i == 0:
            bits = np.int64(-1)
        elif bits < least:
            least = bits
        out[i] = bits
    for i in range(out.size):
        if out[i] >= 0:
            exponent = least - out[i]
            shift = 30 - _WEIGHT_BITS - (exponent >> 30)
            half = np.int64(1) << (shift - 1)
            out[i] = (_exp2(exponent & (_ONE - 1)) + half) >> shift if shift < 33 else 0


@njit(**_OPTIONS)
def _portion(weight, factor):  # type: ignore[no-untyped-def]
    return max(np.int64(1), (weight * factor + (np.int64(1) << 35)) >> 36)


@njit(**_OPTIONS)
def share(weights, slots, out):  # type: ignore[no-untyped-def]
    """Divide ``slots`` (at most 2^16) into ``out`` by weight, int64 [K] both: 0 for a weight of -1, else 1 or more.

    There must be as many slots as weights, and not 2^16 for a single one.
    """
    factor = np.int64(0)
    for bit in range(_FACTOR_BITS - 1, -1, -1):
        tried = factor + (np.int64(1) << bit)
        total = np.int64(0)
        for i in range(weights.size):
            if weights[i] >= 0:
                total += _portion(weights[i], tried)
        if total <= slots:
            factor = tried
    left = slots
    for i in range(weights.size):
        out[i] = _portion(weights[i], factor) if weights[i] >= 0 else 0
        left -= out[i]
    for i in range(weights.size):
        if left and weights[i] >= 0 and _portion(weights[i], factor + 1) > out[i]:
            out[i] += 1
            left -= 1
