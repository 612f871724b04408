"""Segments of the coder "context": a second decoder reads them, tables are what the formulas say, damage is noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdo_kernels.cpu import context
from rdo_kernels.cpu.context_tables import LEVEL, RATE, SQUASH, SQUASH_REACH, STRETCH
from tests import context_decoder

Symbols = NDArray[np.int32]
LIMIT = 2**30


def laplace(scale: float, count: int, seed: int = 0) -> Symbols:
    return np.random.default_rng(seed).laplace(0, scale, count).round().astype(np.int32)


def back(data: NDArray[np.uint8], count: int, row_length: int, column: int, shift: int) -> Symbols | None:
    out = np.full(count, 0x5A5A5A5A, np.int32)
    return out if context.decode(data, row_length, column, shift, out) else None


def test_tables_are_the_functions_they_stand_for() -> None:
    x = np.arange(-SQUASH_REACH, SQUASH_REACH)
    exact = 65536 / (1 + np.exp(-x / 256))
    assert np.abs(SQUASH - exact.clip(16, 65520)).max() <= 1
    assert (np.diff(SQUASH) >= 0).all()
    assert {int(x): int(p) for x, p in zip(x, SQUASH, strict=True)} == {
        x: p for x, p in context_decoder.SQUASH.items() if x < SQUASH_REACH
    }
    assert STRETCH.tolist() == context_decoder.STRETCH
    assert [int(LEVEL[n]) for n in (0, 1, 2, 3, 128, 3968)] == [0, 8, 12, 16, math.floor(8 * math.log2(129)), 95]
    assert RATE[:3].tolist() == [43690, 26214, 18724]


@pytest.mark.parametrize("count", [0, 1, 2, 97, 331])
@pytest.mark.parametrize(("row_length", "column"), [(1, 0), (7, 3), (64, 0), (64, 63), (1000, 11), (2**40, 5)])
def test_the_second_decoder_reads_the_same(count: int, row_length: int, column: int) -> None:
    for scale, shift in ((0.2, 0), (2.0, 0), (9.0, 1), (300.0, 3)):
        symbols = laplace(scale, count, seed=count)
        data = context.encode(symbols, row_length, column, shift)
        assert context_decoder.decode(data.tobytes(), count, row_length, column, shift) == symbols.tolist()
        decoded = back(data, count, row_length, column, shift)
        assert decoded is not None
        assert np.array_equal(decoded, symbols)


def test_the_second_decoder_reads_many_symbols_with_structure() -> None:
    generator = np.random.default_rng(4)
    scales = np.outer(generator.lognormal(0, 1, 40), generator.lognormal(0, 0.7, 100))
    symbols = (generator.normal(0.3, 1, scales.shape) * scales).round().astype(np.int32).ravel()
    symbols[[17, 1000]] = LIMIT, -LIMIT
    data = context.encode(symbols, 100, 0, 0)
    assert context_decoder.decode(data.tobytes(), symbols.size, 100, 0, 0) == symbols.tolist()


@given(
    st.lists(st.one_of(st.integers(-3, 3), st.integers(-LIMIT, LIMIT)), max_size=200),
    st.integers(1, 60),
    st.integers(0, 59),
    st.integers(0, 28),
)
@settings(max_examples=150, deadline=None)
def test_any_symbols_come_back(values: list[int], row_length: int, column: int, shift: int) -> None:
    symbols = np.array(values, np.int32)
    data = context.encode(symbols, row_length, column % row_length, shift)
    decoded = back(data, symbols.size, row_length, column % row_length, shift)
    assert decoded is not None
    assert np.array_equal(decoded, symbols)


def test_bytes_of_a_small_example() -> None:
    symbols = np.array([0, 1, -1, 0, 2, 0, 0, -3, 17, 0, 1, 0], np.int32)
    assert context.encode(symbols, 4, 0, 0).tobytes().hex() == "9f378492aaa1edbb"


def test_carries_run_through_what_is_written() -> None:
    """Thousands of segments; some end in a carry out of the last 64 bits, which the second decoder does not know of."""
    generator = np.random.default_rng(5)
    for _ in range(3000):
        symbols = generator.integers(-1, 2, generator.integers(1, 60)).astype(np.int32)
        data = context.encode(symbols, 5, 0, 0)
        decoded = back(data, symbols.size, 5, 0, 0)
        assert decoded is not None
        assert np.array_equal(decoded, symbols)


def test_damage_is_noticed_or_gives_symbols_in_range() -> None:
    generator = np.random.default_rng(6)
    symbols = (laplace(3.0, 3001) ** 3).clip(-LIMIT, LIMIT).astype(np.int32)
    data = context.encode(symbols, 53, 0, 2)
    noticed = 0
    for trial in range(400):
        bad = data.copy()
        if trial % 4 == 0:
            bad = generator.integers(0, 256, generator.integers(0, 2000)).astype(np.uint8)
        elif trial % 4 == 1:
            bad = bad[: generator.integers(bad.size)]
        elif trial % 4 == 2:
            bad = np.append(bad, generator.integers(1, 256, generator.integers(1, 9)).astype(np.uint8))
        else:
            bad[generator.integers(bad.size)] ^= np.uint8(1 << generator.integers(8))
        decoded = back(bad, symbols.size, 53, 0, 2)
        noticed += decoded is None
        if decoded is not None:
            assert np.abs(decoded.astype(np.int64)).max() <= LIMIT
    assert noticed >= 398, "sixteen bits at the end notice all but one in 65,536"


@pytest.mark.parametrize("fill", [0, 255])
def test_endless_zeros_and_ones_end(fill: int) -> None:
    for shift in (0, 28):
        for size in (0, 1, 8, 5000):
            assert back(np.full(size, fill, np.uint8), 10_000, 3, 0, shift) is None
