"""Streams in segments and lanes: any layout, any part, any number of threads, and nothing in them trusted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rdo.coders import Bitstream, Histogram
from rdo.coders.exp_golomb import ExpGolomb
from rdo.coders.rans import RANS, encode_segments
from rdo.coders.rans_model import Model, best_model
from rdo.coders.segments import Layout, Places
from rdo.coders.varint import Writer
from rdo.errors import CoderError
from tests import format_version_3
from tests.streams import altered

Symbols = NDArray[np.int32]
CODERS = [RANS(), ExpGolomb(k=1), ExpGolomb(k=None, mapping="zigzag")]


def heavy(count: int, seed: int = 0) -> Symbols:
    """Symbols of which some escape."""
    generator = np.random.default_rng(seed)
    return (generator.standard_t(1.2, count) * 2).clip(-(2**30), 2**30).round().astype(np.int32)


def encoded(coder: RANS | ExpGolomb, symbols: Symbols, layout: Layout) -> Bitstream:
    if isinstance(coder, ExpGolomb):
        return coder.encode_segments(symbols, layout)
    return encode_segments(symbols, best_model(Histogram.of(symbols)), layout)


@pytest.fixture(params=CODERS, ids=str)
def coder(request: pytest.FixtureRequest) -> RANS | ExpGolomb:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes_log2", range(6))
@pytest.mark.parametrize("count", [2, 31, 33, 4096, 4097, 3 * 4096 + 2])
def test_the_second_decoder_reads_every_layout(coder: RANS | ExpGolomb, lanes_log2: int, count: int) -> None:
    symbols = heavy(count, seed=count)
    stream = encoded(coder, symbols, Layout(lanes_log2, 12))
    ends = np.cumsum(stream.lengths)
    parts = [stream.payload[end - length : end].tobytes() for length, end in zip(stream.lengths, ends, strict=True)]
    found = format_version_3.decode_stream(coder.config(), stream.table.tobytes(), parts, 12, count)
    assert found == symbols.tolist()
    assert np.array_equal(coder.decode(stream, count), symbols)
    assert stream.payload.size % 4 == 0


def test_any_part_can_be_decoded_alone(coder: RANS | ExpGolomb) -> None:
    symbols = heavy(5 * 4096 + 77)
    stream = encoded(coder, symbols, Layout(5, 12))
    generator = np.random.default_rng(1)
    edges = [0, 1, 4095, 4096, 4097, 5 * 4096, symbols.size - 1, symbols.size]
    for begin, end in [*((b, e) for b in edges for e in edges), *generator.integers(0, symbols.size, (40, 2)).tolist()]:
        if begin <= end:
            part = coder.decode_range(stream, symbols.size, begin, end)
            assert part.dtype == np.int32
            assert np.array_equal(part, symbols[begin:end])
        else:
            with pytest.raises(CoderError, match=f"{begin} to {end}"):
                coder.decode_range(stream, symbols.size, begin, end)
    for begin, end in ((-1, 3), (0, symbols.size + 1)):
        with pytest.raises(CoderError):
            coder.decode_range(stream, symbols.size, begin, end)
    same = np.full(50_000, -3, np.int32)
    assert np.array_equal(coder.decode_range(coder.encode(same), same.size, 40_000, 40_009), same[:9])


def test_damage_elsewhere_does_not_matter_to_a_part(coder: RANS | ExpGolomb) -> None:
    symbols = heavy(3 * 4096)
    stream = encoded(coder, symbols, Layout(5, 12))
    stream.payload[-1000:] ^= 0x55
    assert np.array_equal(coder.decode_range(stream, symbols.size, 0, 4096), symbols[:4096])
    with pytest.raises(CoderError):
        coder.decode(stream, symbols.size)


def test_threads_change_nothing(coder: RANS | ExpGolomb, threads: Callable[[int], None]) -> None:
    symbols = heavy(9 * 4096 + 5)
    found = set()
    for number in (1, 2, 5):
        threads(number)
        stream = encoded(coder, symbols, Layout(5, 12))
        found.add(stream.table.tobytes() + stream.payload.tobytes())
        assert np.array_equal(coder.decode(stream, symbols.size), symbols)
        with pytest.raises(CoderError):
            coder.decode(altered(stream, payload=stream.payload[::-1].copy()), symbols.size)
    assert len(found) == 1


def test_streams_may_lie_at_any_address(coder: RANS | ExpGolomb) -> None:
    symbols = heavy(4099)
    stream = encoded(coder, symbols, Layout(3, 12))
    shifted = np.concatenate([np.zeros(3, np.uint8), stream.payload])[3:]
    assert np.array_equal(coder.decode(altered(stream, payload=shifted), symbols.size), symbols)


def test_symbols_are_found_among_few_and_among_far_apart_values() -> None:
    for values in ([-7], [-7, -6, 0, 9], [-(2**30), 5, 6, 2**30], [2**30 - 1, 2**30]):
        places = Places(np.array(values, np.int64))
        symbols = [*values, *(value - 1 for value in values), *(value + 1 for value in values), 0, -(2**31), 2**31 - 1]
        expected = [values.index(symbol) if symbol in values else len(values) for symbol in symbols]
        assert places.of(np.array(symbols, np.int64).astype(np.int32)).tolist() == expected


def test_truncation_anywhere_is_detected(coder: RANS | ExpGolomb) -> None:
    symbols = heavy(4096 + 300)
    stream = encoded(coder, symbols, Layout(4, 12))
    for length in range(stream.table.size):
        with pytest.raises(CoderError):
            coder.decode(altered(stream, table=stream.table[:length]), symbols.size)
    for length in range(stream.payload.size):
        with pytest.raises(CoderError):
            coder.decode(altered(stream, payload=stream.payload[:length]), symbols.size)
    for count in (0, 1, 4096, symbols.size - 1, symbols.size + 1, 2 * 4096 + 1, 2**40):
        with pytest.raises(CoderError):
            coder.decode(stream, count)


def test_a_changed_bit_gives_an_error_or_symbols(coder: RANS | ExpGolomb) -> None:
    symbols = heavy(4096 + 40)
    stream = encoded(coder, symbols, Layout(5, 12))
    whole = np.concatenate([stream.table, stream.payload])
    accepted = 0
    bits = [*range(8 * stream.table.size), *range(8 * stream.table.size, 8 * whole.size, 5)]
    for bit in bits:
        changed = whole.copy()
        changed[bit // 8] ^= 1 << bit % 8
        try:
            table, payload = np.split(changed, [stream.table.size])
            found = coder.decode(altered(stream, table=table, payload=payload), symbols.size)
        except CoderError:
            continue
        assert found.dtype == np.int32
        assert found.shape == symbols.shape
        assert abs(found.astype(np.int64)).max() <= 2**30
        accepted += 1
    if coder.name == "rans":
        # What changes no state goes unnoticed here: the values of symbols and of escapes. Checksums see them.
        assert accepted < 0.5 * len(bits)


def forged_rans(**changes: list[int]) -> Bitstream:
    """8192 symbols, 0 and 1 in turn but for an escaped 1001, in two segments of one lane; some fields changed."""
    symbols = np.arange(8192, dtype=np.int32) % 2
    symbols[100] = 1001
    model = Model(8, np.array([0, 1]), np.array([100, 100, 56]), escapes=1, width=1, low=1000, payload_bits=0.0)
    stream = encode_segments(symbols, model, Layout(0, 12))
    fields = {
        "precision": [8],
        "lanes": [0],
        "escapes": [1, 2000],
        "kind": [0],
        "values": [1, 0, 1],
        "frequencies": [100, 100, 56],
        "escaped": [1, 0],
    }
    table = Writer()
    for name, numbers in fields.items():
        table.numbers(np.array(changes.get(name, numbers), np.int64))
    assert changes or table.bytes().tobytes() == stream.table.tobytes()
    return altered(stream, table=table.bytes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": [7]}, "precision"),
        ({"precision": [17]}, "precision"),
        ({"precision": [2**62]}, "precision"),
        ({"lanes": [6]}, "lanes"),
        ({"lanes": [2**60]}, "lanes"),
        ({"lanes": [5]}, "payload|segment"),
        ({"escapes": [33, 2000]}, "33 bits"),
        ({"escapes": [1, 2**31 + 2]}, "beyond"),
        ({"escapes": [1, 2**31]}, "a symbol lies beyond"),
        ({"kind": [3]}, "kind"),
        ({"values": [1, 0, 2**17]}, "distinct"),
        ({"values": [1, 0, 2**62]}, "distinct"),
        ({"values": [0]}, "."),
        ({"values": [2**40]}, "runs"),
        ({"frequencies": [0, 1, 1]}, "frequencies"),
        ({"frequencies": [1, 1, 1]}, "frequencies"),
        ({"frequencies": [2**62, 2**62, 1]}, "frequencies"),
        ({"frequencies": [2**63 - 1, 2**63 - 1, 2**11 + 2]}, "frequencies"),
        ({"escaped": [1]}, "numbers"),
        ({"escaped": [1, 0, 0]}, "bytes too many"),
        ({"escaped": []}, "numbers"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, list[int]], message: str) -> None:
    assert RANS().decode(forged_rans(), 8192)[99:102].tolist() == [1, 1001, 1]
    with pytest.raises(CoderError, match=message):
        RANS().decode(forged_rans(**changes), 8192)


@pytest.mark.parametrize("escapes", [0, 2, 32, 33, 4097, 2**40, 2**63 - 1])
def test_a_wrong_number_of_escapes_is_refused(escapes: int) -> None:
    for numbers in ([escapes, 0], [1, escapes] if escapes else [0, 0]):
        with pytest.raises(CoderError):
            RANS().decode(forged_rans(escaped=numbers), 8192)


@pytest.mark.parametrize("lengths", [[], [1], [0, 0], [2**62, 2**62], [2**63 - 1, 2], [-4, 8]])
def test_segments_that_do_not_fill_the_payload_are_refused(lengths: list[int]) -> None:
    stream = replace(forged_rans(), lengths=np.array(lengths, np.int64))
    with pytest.raises(CoderError, match="segment"):
        RANS().decode(stream, 8192)


@pytest.mark.parametrize("log2", [0, 11, 31, 39, 2**60])
def test_sizes_of_segments_that_cannot_be_are_refused(log2: int) -> None:
    with pytest.raises(CoderError, match="segments of 2"):
        RANS().decode(replace(forged_rans(), segment_log2=log2), 8192)


def test_what_fills_the_last_word_of_the_escapes_is_zero() -> None:
    stream = forged_rans()
    words = stream.payload.view("<u4").copy()
    assert words[1] == 1
    words[1] += 2
    with pytest.raises(CoderError, match="not zero"):
        RANS().decode(altered(stream, payload=words.view(np.uint8)), 8192)


def test_lanes_that_do_not_fit_are_refused() -> None:
    symbols = np.array([1, -5, 3, 0, 0, 2] * 9, np.int32)
    coder = ExpGolomb(k=0, mapping="zigzag")
    stream = coder.encode_segments(symbols, Layout(1, 12))
    words = stream.payload.view("<u4").copy()
    bits = words[:2].tolist()
    for lane in (0, 1):
        for length in (0, 1, bits[lane] - 1, bits[lane] + 1, bits[lane] + 32, 2**31, 2**32 - 1):
            changed = words.copy()
            changed[lane] = length
            with pytest.raises(CoderError):
                coder.decode(altered(stream, payload=changed.view(np.uint8)), symbols.size)
    assert bits[1] % 32
    words[-1] |= 1
    with pytest.raises(CoderError, match="damaged"):
        coder.decode(altered(stream, payload=words.view(np.uint8)), symbols.size)


def test_memory_is_that_of_the_symbols_and_a_small_multiple_of_the_stream(
    coder: RANS | ExpGolomb, threads: Callable[[int], None]
) -> None:
    threads(2)
    symbols = heavy(20 * 2**14).clip(-500, 500)
    stream = encoded(coder, symbols, Layout(5, 14))
    for data, count, most in (
        (stream, symbols.size, 4 * symbols.size + 3 * stream.nbytes + 2**20),
        (stream, 2**40, 10 * stream.table.size + 2**16),
        (stream, 2**31, 10 * stream.table.size + 2**20),
    ):
        tracemalloc.start()
        if count == symbols.size:
            coder.decode(data, count)
        else:
            with pytest.raises(CoderError):
                coder.decode(data, count)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
