"""The coder "context": exact, in segments that stand alone, smaller than the order-0 entropy where rows or columns
tell something, never far above it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdo.coders import Histogram, make_coder
from rdo.coders.segments import bounds
from rdo.coders.varint import Writer
from rdo.errors import CoderError
from tests import context_decoder
from tests.streams import altered

Symbols = NDArray[np.int32]
CONTEXT = make_coder("context")
LIMIT = 2**30


def normal(rows: int, columns: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def quantised(weights: NDArray[np.float64]) -> Symbols:
    return (weights / weights.std()).round().astype(np.int32).ravel()


def over_entropy(symbols: Symbols, row_length: int) -> float:
    return 8 * CONTEXT.encode(symbols, row_length).nbytes / Histogram.of(symbols).entropy_bits() - 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4095, 10_007, 2**20 - 1, 2**20 + 1])
@pytest.mark.parametrize("row_length", [1, 3, 64, 997, 2**31])
def test_every_symbol_comes_back(count: int, row_length: int) -> None:
    symbols = np.random.default_rng(count).laplace(0, 1.5, count).round().astype(np.int32)
    stream = CONTEXT.encode(symbols, row_length)
    assert np.array_equal(CONTEXT.decode(stream, count, row_length), symbols)
    again = CONTEXT.encode(symbols, row_length)
    assert np.array_equal(stream.payload, again.payload)
    assert np.array_equal(stream.table, again.table)


@given(st.lists(st.integers(-LIMIT, LIMIT), max_size=60), st.integers(1, 80))
@settings(max_examples=100, deadline=None)
def test_any_symbols_come_back(values: list[int], row_length: int) -> None:
    symbols = np.array(values, np.int32)
    stream = CONTEXT.encode(symbols, row_length)
    assert np.array_equal(CONTEXT.decode(stream, symbols.size, row_length), symbols)


def test_the_largest_magnitudes_come_back() -> None:
    for values in ([LIMIT, -LIMIT], [LIMIT, LIMIT - 1], [-LIMIT] * 50 + [0]):
        symbols = np.array(values, np.int32)
        assert np.array_equal(CONTEXT.decode(CONTEXT.encode(symbols), symbols.size), symbols)


def test_segments_are_decoded_alone_and_know_their_column() -> None:
    symbols = quantised(normal(3000, 701) * np.exp(normal(1, 701, seed=1)))
    stream = CONTEXT.encode(symbols, 701)
    assert len(stream.lengths) == len(bounds(symbols.size, stream.segment_log2)) == 3
    begin, end = 2**20 - 5, 2**20 + 900
    assert np.array_equal(CONTEXT.decode_range(stream, symbols.size, begin, end, 701), symbols[begin:end])
    broken = stream.payload.copy()
    broken[10] ^= 1  # in the first segment
    broken = altered(stream, payload=broken)
    last = CONTEXT.decode_range(broken, symbols.size, 2**21, symbols.size, 701)
    assert np.array_equal(last, symbols[2**21 :])
    with pytest.raises(CoderError, match="damaged"):
        CONTEXT.decode(broken, symbols.size, 701)


def test_the_second_decoder_reads_a_segment_that_begins_within_a_row() -> None:
    symbols = quantised(normal(1, 2**20 + 300))
    stream = CONTEXT.encode(symbols, 701)
    last = stream.payload[-int(stream.lengths[-1]) :].tobytes()
    assert stream.table.tolist() == [1]
    assert context_decoder.decode(last, 300, 701, 2**20 % 701, 0) == symbols[2**20 :].tolist()


def test_scales_of_rows_and_columns_take_it_below_the_entropy() -> None:
    rows, columns = np.exp(normal(600, 1, seed=1)), np.exp(normal(1, 500, seed=2))
    assert over_entropy(quantised(normal(600, 500) * rows), 500) < -0.15
    assert over_entropy(quantised(normal(600, 500) * columns), 500) < -0.15
    assert over_entropy(quantised(normal(600, 500) * rows * columns), 500) < -0.3


def test_columns_that_lean_to_one_sign_and_rows_that_repeat_take_less() -> None:
    leaning = quantised(normal(600, 500) + 1.5 * normal(1, 500, seed=3))
    assert over_entropy(leaning, 500) < -0.15
    outer = quantised(np.outer(normal(1, 600, seed=4), normal(1, 500, seed=5)) + 0.3 * normal(600, 500))
    signs = CONTEXT.encode(outer, 500).nbytes - CONTEXT.encode(np.abs(outer), 500).nbytes
    assert 8 * signs < 0.6 * np.count_nonzero(outer)


def test_a_row_length_that_is_wrong_loses_the_columns() -> None:
    symbols = quantised(normal(600, 500) * np.exp(normal(1, 500, seed=2)))
    assert CONTEXT.encode(symbols, 500).nbytes < 0.9 * CONTEXT.encode(symbols, 499).nbytes


@pytest.mark.parametrize("scale", [0.3, 0.7, 2.0, 6.0, 50.0, 3000.0])
def test_where_nothing_is_to_learn_little_is_lost(scale: float) -> None:
    symbols = (scale * normal(700, 701)).round().astype(np.int32).ravel()
    assert over_entropy(symbols, 701) < 0.006
    assert CONTEXT.size_bytes(Histogram.of(symbols)) == pytest.approx(CONTEXT.encode(symbols, 701).nbytes, rel=0.006)


def test_tiny_and_constant_tensors_take_a_few_bytes() -> None:
    assert CONTEXT.encode(np.empty(0, np.int32)).nbytes == 0
    assert CONTEXT.encode(np.full(3 * 2**20, -7, np.int32), 768).nbytes == 2
    assert CONTEXT.encode(np.full(5, LIMIT, np.int32)).nbytes == 6
    assert CONTEXT.encode(np.array([0, 1, 0], np.int32)).nbytes <= 5
    few = np.zeros(100_000, np.int32)
    few[777] = 1
    assert CONTEXT.encode(few, 100).nbytes < 60


def test_damaged_streams_raise_or_give_symbols_in_range() -> None:
    generator = np.random.default_rng(7)
    symbols = (generator.standard_t(1.2, 20_011) * 4).clip(-(2**29), 2**29).round().astype(np.int32)
    stream = CONTEXT.encode(symbols, 101)
    for trial in range(150):
        table, payload = stream.table.copy(), stream.payload.copy()
        part = table if trial % 5 == 0 else payload
        part[generator.integers(part.size)] ^= np.uint8(1 << generator.integers(8))
        if trial % 3 == 0:
            payload = payload[: generator.integers(payload.size)]
        count = symbols.size + int(generator.integers(-2, 3))
        try:
            decoded = CONTEXT.decode(altered(stream, table=table, payload=payload), count, 101)
        except CoderError:
            continue
        assert np.abs(decoded.astype(np.int64)).max() <= LIMIT


def test_truncated_and_longer_streams_are_refused() -> None:
    symbols = quantised(normal(100, 101))
    stream = CONTEXT.encode(symbols, 101)
    for payload in (stream.payload[:-1], stream.payload[:0], np.append(stream.payload, np.uint8(0))):
        with pytest.raises(CoderError):
            CONTEXT.decode(altered(stream, payload=payload), symbols.size, 101)
    for table in (stream.table[:0], np.append(stream.table, np.uint8(0)), np.array([30], np.uint8)):
        with pytest.raises(CoderError):
            CONTEXT.decode(altered(stream, table=table), symbols.size, 101)
    constant = CONTEXT.encode(np.full(9, 3, np.int32))
    with pytest.raises(CoderError, match="must be empty"):
        CONTEXT.decode(altered(constant, payload=np.ones(1, np.uint8)), 9)
    beyond = Writer()
    beyond.number(0)
    beyond.signed(LIMIT + 1)
    with pytest.raises(CoderError, match="beyond"):
        CONTEXT.decode(altered(constant, table=beyond.bytes()), 9)


def test_symbols_beyond_the_range_are_refused() -> None:
    with pytest.raises(CoderError, match=r"2\^30"):
        CONTEXT.encode(np.array([0, LIMIT + 1], np.int32))
