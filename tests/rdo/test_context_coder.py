"""The context coder: exact, below the order-0 entropy where rows and columns differ, and never trusting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdo.coders import Histogram, make_coder
from rdo.coders.context import Context
from rdo.errors import CoderError
from rdo_kernels.cpu import context_loops
from tests import context_reference
from tests.streams import altered

Symbols = NDArray[np.int32]


def matrix(rows: int, columns: int, *, spread: float, seed: int = 0) -> Symbols:
    """Laplacian symbols whose scale is the product of one for each row and one for each column."""
    generator = np.random.default_rng(seed)
    scales = np.exp(spread * generator.normal(size=(rows, 1))) * np.exp(spread * generator.normal(size=(1, columns)))
    return np.round(generator.laplace(0, scales, (rows, columns))).astype(np.int32).reshape(-1)


def parts(stream: object) -> list[bytes]:
    ends = np.cumsum(stream.lengths)  # type: ignore[attr-defined]
    return [stream.payload[e - n : e].tobytes() for n, e in zip(stream.lengths, ends, strict=True)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("row_length", [1, 2, 63, 300, 2000])
@pytest.mark.parametrize("count", [1, 2, 64, 601])
def test_the_second_decoder_gets_the_same_symbols(row_length: int, count: int) -> None:
    symbols = matrix(count, 1, spread=1.5, seed=count)
    symbols[:: max(1, count // 3)] *= 1000
    [data] = parts(Context().encode(symbols, row_length))
    assert context_reference.decode(data, count, 0, row_length) == symbols.tolist()


def test_segments_go_on_in_the_middle_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdo.coders.context._SEGMENT_SIZE_LOG2", 12)
    symbols = matrix(100, 97, spread=0.5)
    stream = Context().encode(symbols, 97)
    assert len(stream.lengths) == 3
    for number, data in enumerate(parts(stream)):
        own = symbols[number << 12 : (number + 1) << 12]
        assert context_reference.decode(data, own.size, number << 12, 97) == own.tolist()
    assert np.array_equal(Context().decode(stream, symbols.size, 97), symbols)
    assert np.array_equal(Context().decode_range(stream, symbols.size, 5000, 9001, 97), symbols[5000:9001])
    with pytest.raises(CoderError):
        Context().decode(stream, symbols.size, 96)


@pytest.mark.parametrize(("spread", "most"), [(0.0, 1.003), (0.3, 1.02), (0.5, 1.03), (1.0, 1.07)])
def test_sizes_are_close_to_those_for_known_scales(spread: float, most: float) -> None:
    generator = np.random.default_rng(0)
    scales = np.exp(spread * generator.normal(size=(500, 1))) * np.exp(spread * generator.normal(size=(1, 400)))
    symbols = np.round(generator.laplace(0, scales, (500, 400)))
    lowest, highest = np.maximum(np.abs(symbols) - 0.5, 0) / scales, (np.abs(symbols) + 0.5) / scales
    shares = (np.exp(-lowest) - np.exp(-highest)) / np.where(symbols == 0, 1, 2)
    ideal = -np.log2(shares).sum()
    flat = symbols.astype(np.int32).reshape(-1)
    found = 8 * Context().encode(flat, 400).nbytes
    assert found < most * ideal
    if spread > 0:
        assert found < Histogram.of(flat).entropy_bits()


def test_bytes_are_pinned() -> None:
    symbols = np.array([0, 1, -1, 0, 0, 3, 0, -20, 0, 0, 1, 0], np.int32)
    [data] = parts(Context().encode(symbols, 4))
    assert data.hex() == PINNED


PINNED = "9ac7000196e0000000"


def test_few_bytes_for_little() -> None:
    for symbols, most in (
        (np.zeros(10**6, np.int32), 60),
        (np.full(5, 3, np.int32), 12),
        (np.array([7], np.int32), 12),
    ):
        assert Context().encode(symbols, 100).nbytes <= most
    assert Context().encode(np.empty(0, np.int32), 3).nbytes == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**30), 2**30) | st.integers(-20, 20), max_size=200),
    st.integers(1, 250),
)
def test_any_symbols_come_back(values: list[int], row_length: int) -> None:
    symbols = np.array(values, np.int32)
    stream = Context().encode(symbols, row_length)
    assert np.array_equal(Context().decode(stream, symbols.size, row_length), symbols)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdo.coders.context._SEGMENT_SIZE_LOG2", 12)
    symbols, before, found = matrix(300, 128, spread=0.7), torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            stream = Context().encode(symbols, 128)
            found.add(stream.payload.tobytes())
            assert np.array_equal(Context().decode(stream, symbols.size, 128), symbols)
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_damage_gives_an_error_or_symbols() -> None:
    symbols = matrix(40, 50, spread=1.0)
    stream, generator = Context().encode(symbols, 50), np.random.default_rng(0)
    for length in range(stream.payload.size):
        with pytest.raises(CoderError):
            Context().decode(altered(stream, payload=stream.payload[:length]), symbols.size, 50)
    for _ in range(2000):
        payload = stream.payload.copy()
        place = generator.integers(payload.size)
        payload[place : place + generator.integers(1, 9)] = generator.integers(0, 256)
        try:
            found = Context().decode(altered(stream, payload=payload), symbols.size, 50)
        except CoderError:
            continue
        assert found.shape == symbols.shape
        assert np.abs(found.astype(np.int64)).max() <= 2**30
    for size in (0, 1, 3, 5, 100, 10_000):
        for fill in (0, 255):
            data = np.full(size, fill, np.uint8)
            with pytest.raises(CoderError):
                make_coder("context").decode(altered(stream, payload=data), symbols.size, 50)
    with pytest.raises(CoderError, match="no table"):
        Context().decode(altered(stream, table=np.zeros(1, np.uint8)), symbols.size, 50)
    with pytest.raises(CoderError, match=r"2\^30"):
        Context().encode(np.array([2**30 + 1], np.int32))


def test_levels_are_half_octaves() -> None:
    assert [context_loops.level(average) for average in (0, 15, 16, 31, 32, 47, 48, 64, 96, 255 << 8)] == [
        *(0, 0, 1, 1, 3, 3, 4, 5, 6, 23),
    ]
    found = [context_loops.level(average) for average in range(256 << 8)]
    assert found == sorted(found) == [context_reference.level(average) for average in range(256 << 8)]
