"""Integer tables of the coder "context": computed in integers, so that they are the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_UNIT = 256
SQUASH_REACH = 2816


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
RATE: NDArray[np.int32] = np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], np.int32)
"""2^16 / (n + 1.5), rounded down: how far a counter or an average that saw n values goes towards the next."""
