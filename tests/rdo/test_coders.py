from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdo.coders import EntropyCoder, Histogram, coder_from_config, make_coder
from rdo.coders.exp_golomb import ExpGolomb
from rdo.coders.rans import encode_segments
from rdo.coders.rans_model import Model
from rdo.coders.segments import Layout
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError, ConfigError
from tests.streams import altered

CODERS = [
    make_coder("fixed_length"),
    make_coder("exp_golomb"),
    make_coder("exp_golomb", k=3, mapping="zigzag"),
    make_coder("exp_golomb", k=None, mapping="rank"),
    make_coder("huffman"),
    make_coder("rans"),
]
GENERATOR = np.random.default_rng(20)
Symbols = NDArray[np.int32]

# BackSlash, Table 2: code words of 0..9.
TABLE_2 = {
    0: ["1", "010", "011", "00100", "00101", "00110", "00111", "0001000", "0001001", "0001010"],
    1: ["10", "11", "0100", "0101", "0110", "0111", "001000", "001001", "001010", "001011"],
}


def laplace(scale: float, count: int) -> Symbols:
    return GENERATOR.laplace(0, scale, count).round().astype(np.int32)


CASES: dict[str, Symbols] = {
    "empty": np.empty(0, np.int32),
    "one": np.array([-41], np.int32),
    "two": np.array([3, -9], np.int32),
    "all equal": np.full(997, 7, np.int32),
    "two values": (GENERATOR.random(4099) < 0.01).astype(np.int32),
    "extremes": np.array([2**30, -(2**30), 0, 1, -1] * 7, np.int32),
    "one lane": laplace(2.0, 4095),
    "two lanes": laplace(2.0, 4096),
    "32 lanes": laplace(2.0, 65_537),
    "several segments": laplace(0.8, 3 * 2**18 + 4099) * GENERATOR.geometric(0.7, 3 * 2**18 + 4099).astype(np.int32),
    "prime": laplace(40.0, 10_007),
    "uniform over 20,000 values": GENERATOR.integers(-10_000, 10_000, 50_021).astype(np.int32),
    "far apart": GENERATOR.choice(np.array([-(10**9), -5, 0, 12, 10**8], np.int32), 5003),
    "heavy tails": (GENERATOR.standard_t(1.1, 30_011) * 4).clip(-(2**29), 2**29).round().astype(np.int32),
    "all different": GENERATOR.permutation(70_001).astype(np.int32),
}


def bits(payload: NDArray[np.uint8]) -> str:
    return "".join(f"{byte:08b}" for byte in payload)


def lane_bits(payload: NDArray[np.uint8]) -> str:
    """The bits in the only lane of an Exp-Golomb payload, as many as it announces."""
    length, *words = payload.view("<u4").tolist()
    found = "".join(f"{word:032b}" for word in words)
    assert length <= len(found) < length + 32
    assert "1" not in found[length:]
    return found[:length]


def identity(coder: EntropyCoder) -> str:
    return "-".join(str(value) for value in coder.config().values())


@pytest.mark.parametrize("coder", CODERS, ids=identity)
@pytest.mark.parametrize("name", CASES)
def test_round_trip_and_size(coder: EntropyCoder, name: str) -> None:
    symbols = CASES[name]
    stream = coder.encode(symbols)
    decoded = coder.decode(stream, symbols.size)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, symbols)
    again = coder.encode(symbols.copy())
    assert again.table.tobytes() + again.payload.tobytes() == stream.table.tobytes() + stream.payload.tobytes()
    size = coder.size_bytes(Histogram.of(symbols))
    if coder.name in ("rans", "exp_golomb", "float_bits"):
        # Escapes and wide tables are counted too; only the last bits of each lane depend on the order.
        assert abs(size - stream.nbytes) <= 16 + 1e-3 * stream.nbytes
    else:
        assert size == stream.nbytes


@pytest.mark.parametrize("coder", CODERS, ids=identity)
def test_config_round_trip(coder: EntropyCoder) -> None:
    assert coder_from_config(coder.config()) == coder


@pytest.mark.parametrize("k", [0, 1])
def test_the_code_words_of_the_papers_table_2(k: int) -> None:
    for number, word in enumerate(TABLE_2[k]):
        symbol = (number + 1) // 2 * (-1 if number % 2 else 1)
        payload = make_coder("exp_golomb", k=k, mapping="zigzag").encode(np.array([symbol], np.int32)).payload
        assert lane_bits(payload) == word


@pytest.mark.parametrize("k", range(2, 6))
def test_higher_orders_are_eg0_of_the_high_bits_and_the_low_bits(k: int) -> None:
    def eg0(number: int) -> str:
        return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"

    numbers = [0, 1, 2, 7, 8, 100, 2**20, 2**31]
    word = "".join(eg0(number >> k) + f"{number & ((1 << k) - 1):0{k}b}" for number in numbers)
    symbols = np.array([-(number + 1) // 2 if number % 2 else number // 2 for number in numbers], np.int32)
    coder = ExpGolomb(k=k, mapping="zigzag")
    assert lane_bits(coder.encode(symbols).payload) == word
    assert coder.code_bits(Histogram.of(symbols)) == len(word)


def test_ranks_follow_falling_frequency() -> None:
    symbols = np.array([5] * 4 + [-2] * 3 + [2] * 3 + [0] * 1, np.int32)
    stream = make_coder("exp_golomb", k=0, mapping="rank").encode(symbols)
    # 5 -> "1", -2 -> "010", 2 -> "011", 0 -> "00100"
    assert lane_bits(stream.payload) == "1" * 4 + "010" * 3 + "011" * 3 + "00100"


def test_bytes_are_pinned() -> None:
    symbols = np.array([0, 0, 0, 1, -1, 0, 0, 2, 0, -1, 0, 0], np.int32)
    stream = make_coder("fixed_length").encode(symbols)
    assert stream.table.tobytes().hex() == "0102"
    assert bits(stream.payload) == "".join(f"{int(s) + 1:02b}" for s in symbols)
    stream = make_coder("huffman").encode(symbols)
    # Lengths: -1 -> 2, 0 -> 1, 1 -> 3, 2 -> 3; canonical words 10, 0, 110, 111.
    words = {-1: "10", 0: "0", 1: "110", 2: "111"}
    expected = "".join(words[int(s)] for s in symbols)
    assert bits(stream.payload) == expected.ljust(-(-len(expected) // 8) * 8, "0")
    assert stream.table.tolist() == [1, 1, 3, 2, 1, 3, 3]
    stream = make_coder("exp_golomb").encode(symbols)
    # Order 0, one lane; four ranks: 0, -1, 1, 2. One segment: the number of bits, and the code words.
    assert (stream.table.tolist(), stream.segment_log2) == ([0, 0, 4, 0, 1, 2, 4], 18)
    words = {0: "1", -1: "010", 1: "011", 2: "00100"}
    code = "".join(words[int(s)] for s in symbols)
    assert stream.payload.view("<u4").tolist() == [len(code), int(code.ljust(32, "0"), 2)]


def test_bytes_of_rans_are_pinned() -> None:
    symbols, frequencies = np.array([5, 5, 5, 7], np.int32), np.array([192, 64])
    state = 2**16
    for symbol in (7, 5, 5, 5):
        frequency, start = {5: (192, 0), 7: (64, 192)}[symbol]
        state = (state // frequency << 8) + state % frequency + start
    assert state < 2**32
    model = Model(8, np.array([5, 7]), frequencies, escapes=0, width=0, low=0, payload_bits=0.0)
    stream = encode_segments(symbols, model, Layout(0, 12))
    # Eight bits, one lane, no escapes; written out: two runs of one value; 192 and 64 of 256.
    assert stream.table.tolist() == [8, 0, 0, 0, 2, 10, 0, 0, 0, 128 + 64, 1, 64]
    assert stream.payload.view("<u4").tolist() == [state]
    model = Model(8, np.array([5]), frequencies, escapes=1, width=3, low=2, payload_bits=0.0)
    stream = encode_segments(symbols, model, Layout(0, 12))
    # The 7 escapes: three bits from 2; one run of one value; the same frequencies; one escape in the only segment.
    assert stream.table.tolist() == [8, 0, 3, 4, 0, 1, 10, 0, 128 + 64, 1, 64, 1]
    assert stream.payload.view("<u4").tolist() == [state, 7 - 2]


@pytest.mark.parametrize("scale", [0.35, 1.4, 6.0])
def test_rans_is_close_to_the_entropy(scale: float) -> None:
    symbols = laplace(scale, 1_000_000)
    entropy = Histogram.of(symbols).entropy_bits()
    assert make_coder("rans").encode(symbols).nbytes < 1.001 * entropy / 8 + 512


def test_rans_is_as_dense_as_an_independent_coder() -> None:
    constriction = pytest.importorskip("constriction")
    symbols = laplace(1.0, 100_003)
    histogram = Histogram.of(symbols)
    model = constriction.stream.model.Categorical(
        (histogram.counts / histogram.count).astype(np.float32), perfect=False
    )
    oracle = constriction.stream.stack.AnsCoder()
    oracle.encode_reverse(np.searchsorted(histogram.values, symbols).astype(np.int32), model)
    ours = make_coder("rans").encode(symbols)
    assert 8 * ours.payload.size < 1.001 * 32 * len(oracle.get_compressed()) + 32 * 32


@pytest.mark.parametrize("length", [1, 2, 3, 17, 200, 4095, 5003])
@pytest.mark.parametrize("name", [name for name in CASES if name != "empty"])
def test_rans_does_not_lose_much_on_tiny_inputs(name: str, length: int) -> None:
    symbols = CASES[name][:length]
    best = min(make_coder(other).encode(symbols).nbytes for other in ("fixed_length", "huffman"))
    assert make_coder("rans").encode(symbols).nbytes <= best + 64


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**30), 2**30) | st.integers(-3, 3), max_size=300),
    st.sampled_from(CODERS),
)
def test_any_symbols_come_back(values: list[int], coder: EntropyCoder) -> None:
    symbols = np.array(values, np.int32)
    np.testing.assert_array_equal(coder.decode(coder.encode(symbols), symbols.size), symbols)


@pytest.mark.parametrize("coder", CODERS, ids=identity)
@pytest.mark.parametrize("name", ["two", "two values", "prime", "heavy tails"])
def test_damage_gives_a_coder_error_or_symbols_never_a_crash(coder: EntropyCoder, name: str) -> None:
    symbols = CASES[name][:3001]
    stream = coder.encode(symbols)
    generator = np.random.default_rng(5)
    for _ in range(150):
        table, payload = stream.table.copy(), stream.payload.copy()
        part = table if generator.random() < 0.5 or not payload.size else payload
        kind = generator.integers(3)
        if kind == 0:
            part[generator.integers(part.size)] ^= np.uint8(1 << generator.integers(8))
        elif kind == 1:
            part[generator.integers(part.size) :] = 255
        elif part is table:
            table = table[: generator.integers(table.size)]
        else:
            payload = payload[: generator.integers(payload.size)]
        count = symbols.size + int(generator.integers(-1, 2))
        try:
            decoded = coder.decode(altered(stream, table=table, payload=payload), count)
        except CoderError:
            continue
        assert decoded.dtype == np.int32
        assert decoded.size == count


@pytest.mark.parametrize("coder", CODERS, ids=identity)
def test_truncation_and_appended_bytes_are_noticed(coder: EntropyCoder) -> None:
    symbols = CASES["prime"]
    stream = coder.encode(symbols)
    for payload in (stream.payload[:-1], np.append(stream.payload, np.uint8(0)), stream.payload[:0]):
        with pytest.raises(CoderError):
            coder.decode(altered(stream, payload=payload), symbols.size)
    for table in (stream.table[:-1], np.append(stream.table, np.uint8(0))):
        with pytest.raises(CoderError):
            coder.decode(altered(stream, table=table), symbols.size)
    with pytest.raises(CoderError):
        coder.decode(stream, -1)
    with pytest.raises(CoderError):
        coder.decode(stream, 2**41)


@pytest.mark.parametrize("coder", CODERS, ids=identity)
def test_symbols_beyond_the_range_are_refused(coder: EntropyCoder) -> None:
    with pytest.raises(CoderError, match=r"2\^30"):
        coder.encode(np.array([0, 2**30 + 1], np.int32))


def test_bad_options_are_refused() -> None:
    for options in ({"k": 16}, {"k": -1}, {"mapping": "sorted"}):
        with pytest.raises(ConfigError):
            make_coder("exp_golomb", **options)
    with pytest.raises(ConfigError, match="bad options for coder 'rans'"):
        make_coder("rans", lanes=4)


def test_entropy_of_known_histograms() -> None:
    assert Histogram.of(np.array([0, 0, 1, 1], np.int32)).entropy_bits() == 4.0
    assert Histogram.of(np.array([9] * 5, np.int32)).entropy_bits() == 0.0
    assert Histogram.of(np.empty(0, np.int32)).entropy_bits() == 0.0
    wide = np.array([-(2**30), 2**30, 2**30], np.int32)
    assert Histogram.of(wide).counts.tolist() == [1, 2]


def test_varints_reject_what_a_writer_cannot_have_written() -> None:
    writer = Writer()
    for value in (0, 127, 128, 2**31):
        writer.number(value)
    for value in (0, -1, 1, -(2**30)):
        writer.signed(value)
    writer.ascending(np.array([-5, -4, 0, 7, 8, 9], np.int64))
    reader = Reader(writer.bytes())
    assert [reader.number() for _ in range(4)] == [0, 127, 128, 2**31]
    assert [reader.signed() for _ in range(4)] == [0, -1, 1, -(2**30)]
    assert reader.ascending(6).tolist() == [-5, -4, 0, 7, 8, 9]
    reader.end()
    with pytest.raises(CoderError, match="truncated"):
        reader.number()
    with pytest.raises(CoderError, match="too long"):
        Reader(np.full(12, 255, np.uint8)).number()
    writer = Writer()
    writer.ascending(np.arange(6))
    with pytest.raises(CoderError, match="more than 5"):
        Reader(writer.bytes()).ascending(5)
