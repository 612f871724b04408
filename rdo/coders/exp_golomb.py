"""Exp-Golomb codes (BackSlash, Algorithm 2 and Table 2; Wen & Villasenor 1999)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import Layout, OneByOne, Places, join, read_lanes
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from rdo_kernels.streams import ExpGolombStream

MAX_K = 15
_SEGMENT_SIZE_LOG2 = 18
_PADDING_BITS = 15.5
"""What fills the last word of a lane, on average."""


@CODERS.register("exp_golomb")
@dataclass(frozen=True)
class ExpGolomb(EntropyCoder):
    """Exp-Golomb of order k: ``EGk(n) = EG0(n >> k)`` followed by the k low bits of n, in segments of up to 32 lanes.

    Args:
        k: order, 0 to 15; None takes the order that gives the fewest bytes.
        mapping: how symbols become numbers >= 0. ``"rank"``: the place in the order of falling frequency, the paper's
            Algorithm 2 (equal frequencies: the smaller magnitude first, then the negative one); the order is the
            table. ``"zigzag"``: 0, -1, 1, -2 become 0, 1, 2, 3, without a table.
    """

    name: ClassVar[str] = "exp_golomb"
    k: int | None = 0
    mapping: str = "rank"

    def __post_init__(self) -> None:
        if self.k is not None and not (isinstance(self.k, int) and 0 <= self.k <= MAX_K):
            raise ConfigError(f"k must be between 0 and {MAX_K}, or None for the best, got {self.k}")
        if self.mapping not in ("rank", "zigzag"):
            raise ConfigError(f"mapping must be 'rank' or 'zigzag', got {self.mapping!r}")

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        return self.encode_segments(symbols, Layout.of(symbols.size, _SEGMENT_SIZE_LOG2))

    def encode_segments(self, symbols: Symbols, layout: Layout) -> Bitstream:
        """Encode with segments of any layout."""
        if symbols.size == 0:
            return join(np.empty(0, np.uint8), [], layout.size_log2)
        from rdo_kernels.cpu import exp_golomb, threads

        histogram = Histogram.of(symbols)
        coded = self._numbers(histogram)
        k, places = self._order(histogram, coded), Places(histogram.values)

        def encode(bounds: tuple[int, int]) -> Bytes:
            numbers = coded[places.of(symbols[slice(*bounds)])]
            bits = np.empty(layout.lanes, np.int64)
            exp_golomb.lane_bits(numbers, k, bits)
            words = np.empty(layout.lanes + int(_words(bits).sum()), np.uint32)
            words[: layout.lanes] = bits
            exp_golomb.encode(numbers, k, layout.lanes, words[layout.lanes :])
            return words.astype("<u4", copy=False).view(np.uint8)

        segments = threads.share(encode, layout.bounds(symbols.size))
        return join(self._table(histogram, coded, k, layout), segments, layout.size_log2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        decoder = self.read_table(reader, lambda: segment_log2)
        reader.end()
        return decoder

    def read_table(self, reader: Reader, segment_log2: Callable[[], int]) -> SegmentDecoder:
        """Read a table; in version 2 the size of a segment was in it, after the lanes, and an index behind it."""
        k, lanes_log2, size_log2 = reader.number(), read_lanes(reader), segment_log2()
        ranked = ranked_symbols(reader) if self.mapping == "rank" else None
        if k > MAX_K:
            raise CoderError(f"the table asks for order {k}; the largest is {MAX_K}")
        return _Decoder(size_log2, k, 1 << lanes_log2, ranked)

    def size_bytes(self, histogram: Histogram) -> int:
        """Within 16 bytes and 0.1 %: what fills the last word of each lane depends on the order of the symbols."""
        if not len(histogram.values):
            return 0
        numbers = self._numbers(histogram)
        k, layout = self._order(histogram, numbers), Layout.of(histogram.count, _SEGMENT_SIZE_LOG2)
        segments, bits = layout.count(histogram.count), _code_bits(histogram, numbers, k)
        if layout.lanes == 1:
            payload = 4 + 4 * -(-bits // 32)
        else:
            payload = int(bits / 8 + segments * layout.lanes * (4 + _PADDING_BITS / 8))
        return payload + int(self._table(histogram, numbers, k, layout).size)

    def code_bits(self, histogram: Histogram) -> int:
        """Bits of the code words alone, as the paper counts them: exact, without table and lanes."""
        numbers = self._numbers(histogram)
        return _code_bits(histogram, numbers, self._order(histogram, numbers))

    def _numbers(self, histogram: Histogram) -> NDArray[np.uint32]:
        """The number coded for each distinct symbol."""
        zigzag = _zigzag(histogram.values)
        if self.mapping == "zigzag":
            return zigzag.astype(np.uint32)
        numbers = np.empty(len(zigzag), np.uint32)
        numbers[np.lexsort((zigzag, -histogram.counts))] = np.arange(len(zigzag), dtype=np.uint32)
        return numbers

    def _order(self, histogram: Histogram, numbers: NDArray[np.uint32]) -> int:
        if self.k is not None:
            return self.k
        return min(range(MAX_K + 1), key=lambda k: _code_bits(histogram, numbers, k))

    def _table(self, histogram: Histogram, numbers: NDArray[np.uint32], k: int, layout: Layout) -> Bytes:
        table = Writer()
        table.number(k)
        table.number(layout.lanes_log2)
        if self.mapping == "rank":
            table.number(len(numbers))
            table.numbers(_zigzag(histogram.values)[np.argsort(numbers)])
        return table.bytes()


@dataclass(frozen=True)
class _Decoder(OneByOne):
    k: int
    lanes: int
    ranked: Symbols | None

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        if data.size % 4 or out.size > 8 * data.size:
            raise CoderError(f"a segment of {data.size} bytes cannot hold {out.size} symbols")
        numbers = out.view(np.uint32)
        _decode_numbers(data, self.lanes, self.k, numbers)
        out[:] = symbols_of(numbers, self.ranked)

    def kernel_stream(self, payload: Tensor, offsets: NDArray[np.int64]) -> ExpGolombStream:
        """The stream as :mod:`rdo_kernels.decode` takes it."""
        from rdo_kernels.streams import ExpGolombStream

        return ExpGolombStream(payload, offsets, 1 << self.segment_log2, self.lanes, self.k, self.ranked)


def ranked_symbols(table: Reader) -> Symbols:
    """The symbols in the order of rank, from a table; their number first."""
    symbols = _zigzag_inverse(table.numbers(table.number()))
    if (np.abs(symbols) > MAX_SYMBOL).any():
        raise CoderError("the table holds a symbol beyond +-2^30")
    return symbols.astype(np.int32)


def symbols_of(numbers: NDArray[np.uint32], ranked: Symbols | None) -> Symbols:
    """The symbols of decoded numbers: by their ranks, or zig-zagged if there are none.

    Raises:
        CoderError: there is no such rank, or the symbol is out of range.
    """
    largest = int(numbers.max(initial=0))
    if ranked is None:
        if largest > 2 * MAX_SYMBOL:
            raise CoderError("a symbol lies beyond +-2^30")
        return (numbers >> 1).view(np.int32) ^ -(numbers & 1).view(np.int32)
    if numbers.size and largest >= len(ranked):
        raise CoderError("the payload holds a rank that the table does not")
    found: Symbols = ranked[numbers]
    return found


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _zigzag_inverse(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return numbers >> 1 ^ -(numbers & 1)


def _words(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    return (bits + 31) >> 5


def _code_bits(histogram: Histogram, numbers: NDArray[np.uint32], k: int) -> int:
    high = (numbers.astype(np.int64) >> k) + 1
    # frexp's exponent of an integer is its number of bits.
    lengths = 2 * np.frexp(high.astype(np.float64))[1].astype(np.int64) - 1 + k
    return int((histogram.counts * lengths).sum())


def _decode_numbers(segment: Bytes, lanes: int, k: int, out: NDArray[np.uint32]) -> None:
    from rdo_kernels.cpu import exp_golomb

    words = np.zeros(segment.size // 4 + 3, np.uint32)
    words[:-3] = segment.view("<u4")
    bits = words[:lanes].astype(np.int64)
    if lanes > words.size - 3 or lanes + int(_words(bits).sum()) != words.size - 3:
        raise CoderError(f"a segment of {segment.size} bytes does not hold the lanes that it announces")
    if not exp_golomb.decode(words[lanes:], bits, k, out):
        raise CoderError("the payload is truncated or damaged")
