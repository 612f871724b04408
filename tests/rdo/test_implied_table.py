"""Implied frequencies: the same everywhere, those of the law, and chosen where they make streams smaller."""

from __future__ import annotations

import tracemalloc
import zlib

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdo.coders import Histogram, make_coder
from rdo.coders.implied_table import ImpliedTable
from rdo.coders.rans import RANS, encode_segments
from rdo.coders.rans_model import best_model, explicit_model, implied_model
from rdo.coders.rans_table import read_frequencies, write_frequencies
from rdo.coders.segments import Layout
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError
from tests import implied_frequencies

Symbols = NDArray[np.int32]


def fields(table: ImpliedTable) -> tuple[int, ...]:
    return table.low, table.length, table.shape, table.scale, table.center, table.zero, table.escape


@st.composite
def tables(draw: st.DrawFn, longest: int = 60) -> ImpliedTable:
    """Any law on few symbols, near zero or not."""
    length = draw(st.integers(1, longest))
    low = draw(st.integers(-longest, longest // 2) | st.sampled_from([-(2**30), 2**30 - length + 1]))
    shape = draw(st.integers(1, 256))
    scale = draw(st.integers(-2048, 2048) | st.integers(-64, 300))
    center = draw(st.integers(8 * low, 8 * (low + length - 1)))
    escape = draw(st.integers(length == 1, 30))
    zero = draw(st.integers(0, 40)) if low <= 0 < low + length and length > 1 else 0
    return ImpliedTable(low, length, shape, scale, center, zero, escape)


# The vectors of docs/coders.md.
@pytest.mark.parametrize(
    ("precision", "table", "written", "frequencies"),
    [
        (8, (-4, 9, 64, 32, 0, 0, 0), "07 08 40 40 00", [14, 20, 28, 39, 55, 39, 28, 19, 14]),
        (8, (-2, 6, 45, -20, 5, 100, 3), "03 05 2d 27 0a 64 03", [16, 26, 100, 62, 31, 18, 3]),
        (10, (3, 5, 128, 40, 37, 0, 0), "06 04 80 01 50 4a 00", [187, 247, 255, 205, 130]),
        (8, (0, 4, 1, 2048, 0, 0, 1), "00 03 01 80 20 00 01", [82, 58, 58, 57, 1]),
    ],
)
def test_frequencies_are_pinned(precision: int, table: tuple[int, ...], written: str, frequencies: list[int]) -> None:
    implied = ImpliedTable(*table)
    assert implied.frequencies(precision).tolist() == frequencies
    assert implied_frequencies.frequencies(precision, *table) == frequencies
    writer = Writer()
    implied.write(writer)
    assert writer.bytes().tobytes() == bytes.fromhex(written)
    reader = Reader(writer.bytes())
    assert ImpliedTable.read(reader, centered=implied.center == 0, escapes=implied.escape > 0) == implied
    reader.end()


def test_a_long_table_is_pinned() -> None:
    found = ImpliedTable(-2000, 4001, 50, 250, 0, 900, 7).frequencies(16)
    assert found[1998:2004].tolist() == [80, 80, 900, 80, 80, 79]
    assert zlib.crc32(found.astype("<u4").tobytes()) == 0x7B7C32D6


def test_the_powers_are_roots_of_two() -> None:
    from rdo_kernels.cpu.implied import POWERS

    with mpmath.workprec(120):
        exact = [mpmath.mpf(2) ** (30 + mpmath.mpf(2) ** -i) for i in range(1, 31)]
        assert [int(mpmath.nint(power)) for power in exact] == POWERS.tolist() == implied_frequencies.POWERS


@settings(max_examples=300, deadline=None)
@given(tables(), st.integers(8, 16))
def test_two_implementations_agree(table: ImpliedTable, precision: int) -> None:
    found = table.frequencies(precision)
    assert found.tolist() == implied_frequencies.frequencies(precision, *fields(table))
    assert int(found.sum()) == 1 << precision
    assert int(found.min()) >= 1


@settings(max_examples=200, deadline=None)
@given(tables(longest=20))
def test_weights_are_those_of_the_law(table: ImpliedTable) -> None:
    with mpmath.workprec(200):
        scale, shape = mpmath.mpf(2) ** (mpmath.mpf(table.scale) / 32), mpmath.mpf(table.shape) / 64
        center = mpmath.mpf(table.center) / 8
        exponents = [min(mpmath.mpf(64), (abs(k - center) / scale) ** shape) for k in table.values.tolist()]
        found = table.weights().tolist()
        weighted = [(e, weight) for e, weight in zip(exponents, found, strict=True) if weight >= 0]
        assert len(weighted) == table.weighted
        least = min(e for e, _ in weighted)
        for e, weight in weighted:
            assert abs(mpmath.mpf(2) ** (20 - (e - least)) - weight) < 1


def test_far_from_its_center_a_long_table_is_that_of_the_law_too() -> None:
    table = ImpliedTable(2**30 - 65_535, 65_536, 40, 290, 8 * (2**30 - 65_535) + 3, 0, 0)
    weights = table.weights()
    exact = np.exp2(20 - ((np.arange(65_536) - 3 / 8).__abs__() / 2 ** (290 / 32)) ** (40 / 64))
    exact *= 2 ** ((3 / 8 / 2 ** (290 / 32)) ** (40 / 64))
    np.testing.assert_allclose(weights, exact, rtol=0, atol=1)
    assert table.frequencies(16).tolist() == [1] * 65_536


def test_equal_weights_share_alike_and_the_first_take_the_rest() -> None:
    assert ImpliedTable(0, 7, 64, 2048, 0, 0, 0).frequencies(8).tolist() == [37] * 4 + [36] * 3
    # The nearest symbol's exponent is beyond 64 as well: all weights are equal.
    assert ImpliedTable(5, 3, 256, -2048, 47, 0, 0).frequencies(8).tolist() == [86, 85, 85]


@pytest.mark.parametrize(
    "table",
    [
        (0, 0, 64, 0, 0, 0, 1),
        (0, 2**16 + 1, 64, 0, 0, 0, 0),
        (0, 2**60, 64, 0, 0, 0, 0),
        (-(2**30) - 1, 5, 64, 0, -(2**33), 0, 0),
        (2**30 - 3, 5, 64, 0, 2**33, 0, 0),
        (0, 5, 0, 0, 0, 0, 0),
        (0, 5, 257, 0, 0, 0, 0),
        (0, 5, 64, 2049, 0, 0, 0),
        (0, 5, 64, -2049, 0, 0, 0),
        (0, 5, 64, 0, 33, 0, 0),
        (0, 5, 64, 0, -1, 0, 0),
        (1, 5, 64, 0, 8, 3, 0),
        (0, 1, 64, 0, 0, 0, 0),
        (0, 1, 64, 0, 0, 3, 1),
    ],
)
def test_impossible_tables_are_refused(table: tuple[int, ...]) -> None:
    with pytest.raises(CoderError, match="implied table"):
        ImpliedTable(*table)


def stream_of(kind: int, *numbers: int, signed: tuple[int, ...] = (0, 3)) -> Reader:
    writer = Writer()
    writer.number(kind)
    for place, value in enumerate(numbers):
        (writer.signed if place in signed else writer.number)(value)
    return Reader(writer.bytes())


def test_forged_fields_are_refused_without_memory() -> None:
    values, frequencies = read_frequencies(stream_of(1, -1, 2, 64, 0, 0), 8, escapes=False)
    assert values.tolist() == [-1, 0, 1]
    assert int(frequencies.sum()) == 256
    tracemalloc.start()
    for kind, numbers, escapes in [
        (3, (-1, 2, 64, 0, 0), False),  # an unknown kind
        (1, (-1, 2, 64, 0, 255), False),  # one slot for two symbols
        (1, (-1, 2, 64, 0, 2**62), False),
        (1, (-1, 2, 64, 0, 0, 0), True),  # an escape without a slot
        (1, (-1, 2, 64, 0, 0, 254), True),
        (1, (-1, 2, 64, 0, 0, 2**62), True),
        (1, (-1, 256, 64, 0, 0), False),  # 257 symbols, 256 slots
        (1, (-1, 2**62, 64, 0, 0), False),
        (1, (-1, 2, 2**62, 0, 0), False),
        (1, (-1, 2, 64, 2**61, 0), False),
        (1, (2**61, 2, 64, 0, 0), False),
        (1, (1, 2, 64, 0, 0), False),  # the center, 0, is not among the symbols
        (1, (-1, 2, 64, 0), False),  # truncated
    ]:
        with pytest.raises(CoderError):
            read_frequencies(stream_of(kind, *numbers), 8, escapes=escapes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


GENERATOR = np.random.default_rng(41)


def rounded(values: NDArray[np.float64]) -> Symbols:
    return values.clip(-(2**30), 2**30).round().astype(np.int32)


LAWS: dict[str, Symbols] = {
    "wide": rounded(GENERATOR.laplace(0, 150, 3000)),
    "sparse": rounded(GENERATOR.laplace(0, 3, 3000) * (GENERATOR.random(3000) < 0.1)),
    "off center": rounded(GENERATOR.normal(900.3, 40, 2000)),
    "far off center": rounded(GENERATOR.normal(10**9, 40, 2000)),
    "around zero and off center": rounded(GENERATOR.normal(60, 40, 3000)),
    "flat": rounded(GENERATOR.uniform(-700, 700, 5000)),
    "outliers": rounded(np.append(GENERATOR.laplace(0, 60, 4000), [10**9, -(10**8), 30_000])),
    "heavy tails": rounded(GENERATOR.standard_t(1.5, 5000) * 40),
    "of one side": rounded(GENERATOR.exponential(80, 3000)),
}
OTHERS: dict[str, Symbols] = {
    "two values": rounded(GENERATOR.choice([-5.0, 2.0], 400)),
    "even alone": 2 * rounded(GENERATOR.laplace(0, 20, 30_000)),
    "two heaps": rounded(GENERATOR.normal(0, 4, 40_000) + GENERATOR.choice([-40, 40], 40_000)),
    "one and many zeros": np.eye(1, 900, 17, dtype=np.int32)[0],
    "far apart": GENERATOR.choice(np.array([-(2**30), 7, 2**30], np.int32), 300),
}


@pytest.mark.parametrize("name", [*LAWS, *OTHERS])
def test_the_smaller_table_is_chosen(name: str) -> None:
    symbols = {**LAWS, **OTHERS}[name]
    histogram = Histogram.of(symbols)
    found, explicit, implied = best_model(histogram), explicit_model(histogram), implied_model(histogram)
    models = [model for model in (explicit, implied) if model]
    streams = [encode_segments(symbols, model, Layout(0, 18)) for model in models]
    for model, stream in zip(models, streams, strict=True):
        assert np.array_equal(RANS().decode(stream, symbols.size), symbols)
        size = (model.payload_bits + model.table_bits) / 8
        assert abs(size - stream.nbytes) < 12 + 1e-3 * size
    best = encode_segments(symbols, found, Layout(0, 18))
    # What is compared leaves out how the last state comes out: a word at most.
    assert best.nbytes <= min(stream.nbytes for stream in streams) + 4
    assert (found.implied is not None) == (name in LAWS)
    if found.implied and "off center" in name:
        assert found.implied.center / 8 == pytest.approx(symbols.mean(), abs=3)


def test_a_wide_alphabet_takes_a_few_bytes_of_table() -> None:
    stream, explicit = RANS().encode(LAWS["wide"]), explicit_model(Histogram.of(LAWS["wide"]))
    assert stream.table.size < 20
    assert encode_segments(LAWS["wide"], explicit, Layout(0, 18)).nbytes > 1.05 * stream.nbytes
    # The differential entropy of the law is nearly its entropy at a step of 1.
    assert stream.nbytes < 1.02 * 3000 * np.log2(2 * np.e * 150) / 8


@pytest.mark.parametrize(("shape", "scale"), [(0.5, 2.0), (1.0, 9.0), (2.0, 300.0)])
def test_the_fit_comes_close_to_the_law_that_made_the_symbols(shape: float, scale: float) -> None:
    generator = np.random.default_rng(3)
    magnitudes = scale * generator.gamma(1 / shape, size=20_000) ** (1 / shape)
    symbols = rounded(magnitudes * generator.choice([-1.0, 1.0], 20_000))
    model = implied_model(Histogram.of(symbols))
    assert model is not None
    assert model.implied is not None
    assert model.implied.shape / 64 == pytest.approx(shape, rel=0.15)
    law = scipy.stats.gennorm(shape, scale=scale)
    of_the_law = -np.log2(law.cdf(symbols + 0.5) - law.cdf(symbols - 0.5)).sum()
    assert model.payload_bits < 1.002 * of_the_law


def test_tables_survive_writing() -> None:
    for symbols in LAWS.values():
        model = best_model(Histogram.of(symbols))
        writer = Writer()
        write_frequencies(writer, model)
        reader = Reader(writer.bytes())
        values, frequencies = read_frequencies(reader, model.precision, escapes=model.width > 0)
        reader.end()
        assert np.array_equal(values, model.kept)
        assert np.array_equal(frequencies, model.frequencies)


TINY = ["laplace", "shifted", "uniform", "cauchy", "distinct", "far apart", "two", "one off", "few", "powers", "sparse"]


def tiny(law: str, count: int, generator: np.random.Generator) -> Symbols:
    scale, extent = float(np.exp(generator.uniform(-2, 9))), 2**30
    match law:
        case "laplace":
            values = generator.laplace(0, scale, count)
        case "shifted":
            values = generator.normal(generator.uniform(-3, 3) * scale, scale, count)
        case "uniform":
            values = generator.uniform(-scale, scale, count)
        case "cauchy":
            values = generator.standard_cauchy(count) * scale
        case "distinct":
            values = generator.permutation(count).astype(np.float64)
        case "far apart":
            values = np.cumsum(generator.integers(1, extent // count + 1, count)) - extent / 2
        case "two":
            values = generator.choice([-float(extent), float(extent)], count)
        case "one off":
            values = np.where(np.arange(count) == count // 3, extent, generator.integers(-9, 9, count)).astype(float)
        case "few":
            values = generator.choice(generator.uniform(-extent, extent, generator.integers(1, 20)), count)
        case "powers":
            values = 2.0 ** generator.integers(0, 31, count)
        case _:
            values = generator.laplace(0, scale, count) * (generator.random(count) < 0.05)
    return rounded(values)


@pytest.mark.parametrize("law", TINY)
def test_tiny_tensors_are_never_much_larger_than_under_other_coders(law: str) -> None:
    generator = np.random.default_rng(TINY.index(law))
    others = [make_coder("huffman"), make_coder("fixed_length")]
    counts = [1, 2, 3, 5, 16, 4095, 4096, *np.exp(generator.uniform(0, np.log(4096), 20)).astype(int).tolist()]
    for count in counts:
        symbols = tiny(law, count, generator)
        stream = RANS().encode(symbols)
        assert stream.nbytes <= min(other.encode(symbols).nbytes for other in others) + 64
        assert np.array_equal(RANS().decode(stream, count), symbols)
        assert abs(RANS().size_bytes(Histogram.of(symbols)) - stream.nbytes) <= 16
        # Nor than with frequencies written out.
        if len(np.unique(symbols)) > 1:
            explicit = explicit_model(Histogram.of(symbols))
            lanes_log2 = int(stream.table[1])
            assert stream.nbytes <= encode_segments(symbols, explicit, Layout(lanes_log2, 18)).nbytes + 4
