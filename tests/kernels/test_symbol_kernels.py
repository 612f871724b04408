"""The compiled passes over symbols against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rdo_kernels.cpu import symbols as kernels

COUNTS = (1, 3, 4, 5, 255, 256, 257, 1021, 100_003)
MARKER = np.int32(-(2**31))


def draw(count: int, spread: float = 20.0) -> NDArray[np.int32]:
    return np.round(np.random.default_rng(count).laplace(-3, spread, count)).astype(np.int32)


@pytest.mark.parametrize("count", COUNTS)
def test_histogram_and_bounds(count: int) -> None:
    symbols = draw(count)
    low, high = kernels.bounds(symbols)
    assert (low, high) == (symbols.min(), symbols.max())
    counts = np.zeros(high - low + 3, np.int64)
    counts[-2:] = 5, 6
    kernels.histogram(symbols, low, counts)
    np.testing.assert_array_equal(counts[:-2], np.bincount(symbols - low))
    assert counts[-2:].tolist() == [5, 6]
    kernels.histogram(symbols, low, counts)
    assert counts.sum() == 2 * count + 11


def test_bounds_of_the_largest_symbols() -> None:
    symbols = np.array([2**31 - 1, -(2**31), 0], np.int32)
    assert kernels.bounds(symbols) == (-(2**31), 2**31 - 1)


@pytest.mark.parametrize("count", [0, *COUNTS])
def test_escaped_symbols_go_out_and_back(count: int) -> None:
    """Symbols from -10 to 20 have a place, all others are escaped, whatever 32 bits they are."""
    symbols = draw(count)
    symbols[1::7] = np.random.default_rng(1).integers(-(2**31), 2**31, len(symbols[1::7])).astype(np.int32)
    places = np.append(np.random.default_rng(2).permutation(31), 31).astype(np.uint16)
    room = np.full(count + 2, 777, np.uint16)
    indices = room[1:-1]
    escapes = kernels.index(symbols, -10, places, indices)
    inside = (symbols >= -10) & (symbols <= 20)
    np.testing.assert_array_equal(indices, np.where(inside, places[np.clip(symbols.astype(np.int64) + 10, 0, 31)], 31))
    assert room[0] == room[-1] == 777
    assert escapes == count - inside.sum()
    escaped = np.full(escapes + 2, 777, np.int32)
    kernels.take_escaped(symbols, indices, np.uint16(31), escaped[1:-1])
    np.testing.assert_array_equal(escaped[1:-1], symbols[~inside])
    assert escaped[0] == escaped[-1] == 777
    holes = np.where(inside, symbols, MARKER)
    assert kernels.put_escaped(holes, MARKER, escaped[1:-1]) == escapes
    np.testing.assert_array_equal(holes, symbols)


def test_a_run_in_which_all_are_escaped() -> None:
    symbols = np.full(1000, 99, np.int32)
    indices = np.empty(1000, np.uint16)
    assert kernels.index(symbols, 0, np.array([0, 1, 2], np.uint16), indices) == 1000
    assert (indices == 2).all()


def test_more_markers_than_escaped_symbols() -> None:
    """A stream that lies: the markers that are left stay, and are counted."""
    symbols = np.full(600, MARKER)
    assert kernels.put_escaped(symbols, MARKER, np.arange(7, dtype=np.int32)) == 600
    assert symbols[:7].tolist() == list(range(7))
    assert (symbols[7:] == MARKER).all()
