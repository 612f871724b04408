"""Look-up of symbols in a table on a CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}


@njit(**_OPTIONS)
def find(symbols, low, table, absent, out):  # type: ignore[no-untyped-def]
    """Write ``table[symbol - low]`` (uint32) for int32 symbols, ``absent`` for those outside the table."""
    for i in range(symbols.size):
        place = np.int64(symbols[i]) - low
        out[i] = table[place] if 0 <= place < table.size else absent


@njit(**_OPTIONS)
def count(symbols, low, counts):  # type: ignore[no-untyped-def]
    """Add 1 to ``counts[symbol - low]`` (int64) for int32 symbols, all of which must be within it."""
    # Two of a kind in a row would wait for one another: every second symbol has counters of its own.
    others = np.zeros(counts.size, np.int64)
    for i in range(0, symbols.size - 1, 2):
        counts[np.int64(symbols[i]) - low] += 1
        others[np.int64(symbols[i + 1]) - low] += 1
    if symbols.size % 2:
        counts[np.int64(symbols[-1]) - low] += 1
    counts += others
