"""rANS: a range coder that comes within a fraction of a percent of the order-0 entropy, at any rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, Symbols
from rdo.coders.rans_model import PRECISIONS, Model, best_model
from rdo.coders.segments import Index, Layout, Places, check_range, decode_segments
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_SEGMENT_BITS = 1 << 20
"""A segment's payload has this many bits or more, so that its states (128 bytes) are at most 0.1 % of it."""
_SEGMENT_SIZES_LOG2 = range(18, 23)
_LANE_BYTES = 3
"""What a lane adds to the information in a segment: two bytes of its first state, and one, on average, of its last."""
ESCAPE = np.iinfo(np.int32).min
"""Stands in a table of slots for a value that no symbol can have."""


@CODERS.register("rans")
@dataclass(frozen=True)
class RANS(EntropyCoder):
    """rANS: static order-0 range coding in segments, of up to 32 interleaved states each; frequencies of 8 to 16 bits.

    Symbols too rare for a slot of the table escape to a fixed-length code. Precision and escapes are those of least
    total size, or a smaller precision if that costs less than 0.02 %. Segments are shared out over threads.
    """

    name: ClassVar[str] = "rans"

    def encode(self, symbols: Symbols) -> Bitstream:
        histogram = Histogram.of(symbols)
        if len(histogram.values) < 2:
            return Bitstream(_single(histogram), np.empty(0, np.uint8))
        model = best_model(histogram)
        return encode_segments(symbols, model, _layout(histogram.count, model))

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        return self.decode_range(stream, count, 0, count)

    def decode_range(self, stream: Bitstream, count: int, begin: int, end: int) -> Symbols:
        """Symbols ``begin`` to ``end`` (exclusive) of the ``count`` in a stream, from the segments that hold them.

        Raises:
            CoderError: as :meth:`decode`; other segments are not looked at.
        """
        check_range(stream, count, begin, end)
        if not count:
            return np.empty(0, np.int32)
        reader = Reader(stream.table)
        precision = reader.number()
        if precision == 0:
            return decode_single(reader, stream.payload, end - begin)
        table = Table.read(reader, precision, stream.payload, count)
        values = np.append(table.values, ESCAPE) if table.width else table.values
        slots = Slots(np.repeat(values.astype(np.int32), table.frequencies), slot_steps(table.frequencies))

        def decode(number: int, out: Symbols) -> None:
            escapes = int(table.index.escapes[number])
            table.decode_segment(table.index.segment(stream.payload, number), escapes, slots, out)

        return decode_segments(table.layout, count, begin, end, decode)

    def size_bytes(self, histogram: Histogram) -> int:
        """Within 16 bytes and 0.1 %: the last bytes of each lane depend on the order of the symbols."""
        if len(histogram.values) < 2:
            return int(_single(histogram).size)
        model = best_model(histogram)
        layout = _layout(histogram.count, model)
        segments = layout.count(histogram.count)
        payload = int(model.payload_bits / 8) + segments * (layout.lanes * _LANE_BYTES + 2)
        columns = np.full((segments, 2), [payload // (4 * segments), model.escapes // segments])
        return payload + int(_table(model, layout, columns).size)


def encode_segments(symbols: Symbols, model: Model, layout: Layout) -> Bitstream:
    """Encode symbols by a model that suits them; the segments may have any layout."""
    from rdo_kernels.cpu import rans, threads

    places = Places(model.kept)
    frequencies = model.frequencies.astype(np.uint32)
    starts = (np.cumsum(model.frequencies) - model.frequencies).astype(np.uint32)
    inverses = 1.0 / model.frequencies

    def encode(bounds: tuple[int, int]) -> tuple[Bytes, int]:
        part = symbols[slice(*bounds)]
        indices = places.of(part)
        states, words = np.empty(layout.lanes, np.uint32), np.empty(part.size, np.uint16)
        first = rans.encode(indices, frequencies, starts, inverses, model.precision, states, words)
        escaped = part[indices == len(model.kept)] if model.width else part[:0]
        packed = _pack(escaped.astype(np.int64) - model.low, model.width)
        data = [states.astype("<u4"), packed.astype("<u4"), words[first:].astype("<u2")]
        padding = np.zeros(-2 * (words.size - first) % 4, np.uint8)
        return np.concatenate([*(array.view(np.uint8) for array in data), padding]), escaped.size

    segments = threads.share(encode, layout.bounds(symbols.size))
    columns = np.array([(segment.size // 4, escapes) for segment, escapes in segments], np.int64)
    return Bitstream(_table(model, layout, columns), np.concatenate([segment for segment, _ in segments]))


def slot_steps(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """For each slot, ``(frequency - 1) << 16 | slot - start`` of its symbol: what a decoder's step takes."""
    starts = np.cumsum(frequencies) - frequencies
    offsets = np.arange(int(frequencies.sum())) - np.repeat(starts, frequencies)
    return ((np.repeat(frequencies, frequencies) - 1) << 16 | offsets).astype(np.uint32)


def check_frequencies(frequencies: NDArray[np.int64], precision: int, count: int, payload: Bytes) -> None:
    """Raise CoderError unless these are frequencies and ``count`` symbols of them can be in a payload of this size."""
    slots, most = 1 << precision, int(frequencies.max(initial=0))
    # The largest is compared too: a sum of forged ones may wrap around.
    if len(frequencies) < 2 or int(frequencies.min()) < 1 or most > slots or int(frequencies.sum()) != slots:
        raise CoderError("the frequencies of the table do not fill it")
    # To encode a symbol multiplies a state q f + r by 1 + q (2^p - f) / (q f + r) or more, where q >= 1 and r < f.
    if count * math.log2((1 + slots / most) / 2) > 8 * payload.size:
        raise CoderError(f"{count} symbols cannot fit into a payload of {payload.size} bytes")


def decode_single(reader: Reader, payload: Bytes, count: int) -> Symbols:
    """``count`` times the symbol that is the rest of a table."""
    value = reader.signed()
    reader.end()
    if payload.size or abs(value) > MAX_SYMBOL:
        raise CoderError("the table of a single repeated symbol must stand alone and within +-2^30")
    return np.full(count, value, np.int32)


@dataclass(frozen=True)
class Slots:
    """A decoder's look-up tables, [2**precision] each.

    Attributes:
        values: int32, what stands for a symbol. Without escapes that may be any 32 bits, for instance those of a
            float32, the symbol times a step.
        steps: uint32, as :func:`slot_steps` gives them.
    """

    values: NDArray[np.int32]
    steps: NDArray[np.uint32]


@dataclass(frozen=True)
class Table:
    """What a stream's table says, checked against the payload's length; attributes as those of a Model."""

    precision: int
    layout: Layout
    width: int
    low: int
    values: NDArray[np.int64]
    frequencies: NDArray[np.int64]
    index: Index

    @classmethod
    def read(cls, reader: Reader, precision: int, payload: Bytes, count: int) -> Table:
        """Read all but the precision."""
        if precision not in PRECISIONS:
            raise CoderError(f"the table has {precision} bits of precision; 8 to 16 are possible")
        layout, width = Layout.read(reader), reader.number()
        low = reader.signed() if width else 0
        if width > 32 or abs(low) > MAX_SYMBOL:
            raise CoderError(f"escaped symbols of {width} bits from {low} are beyond what symbols can be")
        values = reader.ascending(1 << precision)
        frequencies = reader.numbers(len(values) + (width > 0))
        check_frequencies(frequencies, precision, count, payload)
        index = Index.read(reader, layout.count(count), payload, escapes=width > 0)
        return cls(precision, layout, width, low, values, frequencies, index)

    def decode_segment(self, segment: Bytes, escapes: int, slots: Slots, out: Symbols) -> None:
        from rdo_kernels.cpu import rans

        begin = 4 * self.layout.lanes
        middle = begin + 4 * -(-escapes * self.width // 32)
        if segment.size < middle or escapes > out.size:
            raise CoderError(f"a segment of {segment.size} bytes cannot hold its states and {escapes} escaped symbols")
        states = segment[:begin].view("<u4").astype(np.uint32)
        words = segment[middle:].view("<u2").astype(np.uint16, copy=False)
        used = rans.decode(words, states, slots.values, slots.steps, self.precision, out)
        padded = words.size > 0 and used == words.size - 1 and not words[-1]
        if not (used == words.size or padded) or (states != rans.LOW).any():
            raise CoderError("the payload is truncated or damaged")
        if self.width:
            self._fill_escapes(segment[begin:middle], escapes, out)

    def _fill_escapes(self, data: Bytes, escapes: int, out: Symbols) -> None:
        holes = np.flatnonzero(out == ESCAPE)
        if len(holes) != escapes:
            raise CoderError(f"the table announces {escapes} escaped symbols, the payload has {len(holes)}")
        symbols = _unpack(data, self.width, escapes) + self.low
        if escapes and int(symbols.max()) > MAX_SYMBOL:
            raise CoderError("a symbol lies beyond +-2^30")
        out[holes] = symbols


def _layout(count: int, model: Model) -> Layout:
    size = next((s for s in _SEGMENT_SIZES_LOG2 if model.payload_bits * 2**s >= _SEGMENT_BITS * count), 22)
    return Layout.of(count, size)


def _single(histogram: Histogram) -> Bytes:
    table = Writer()
    if len(histogram.values):
        table.number(0)
        table.signed(int(histogram.values[0]))
    return table.bytes()


def _table(model: Model, layout: Layout, columns: NDArray[np.int64]) -> Bytes:
    """``columns`` are int64 [segments, 2]: a fourth of each segment's length, and its number of escaped symbols."""
    table = Writer()
    table.number(model.precision)
    layout.write(table)
    table.number(model.width)
    if model.width:
        table.signed(model.low)
    table.ascending(model.kept)
    table.numbers(model.frequencies)
    table.numbers(columns[:, : 2 if model.width else 1].reshape(-1))
    return table.bytes()


def _pack(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Numbers below 2**width in as many bits each, least significant first in a sequence of words."""
    positions = np.arange(len(numbers)) * width
    shifted = numbers.astype(np.uint64) << (positions & 31).astype(np.uint64)
    words = np.zeros(-(-len(numbers) * width // 32) + 1, np.uint64)
    np.bitwise_or.at(words, positions >> 5, shifted & np.uint64(0xFFFFFFFF))
    np.bitwise_or.at(words, (positions >> 5) + 1, shifted >> np.uint64(32))
    return words[:-1].astype(np.uint32)


def _unpack(data: Bytes, width: int, count: int) -> NDArray[np.int64]:
    words = np.append(data.view("<u4"), [0, 0]).astype(np.uint64)
    if count * width % 32 and int(words[-3]) >> count * width % 32:
        raise CoderError("what fills the last word of the escaped symbols is not zero")
    positions = np.arange(count) * width
    pairs = words[positions >> 5] | words[(positions >> 5) + 1] << np.uint64(32)
    shifted: NDArray[np.uint64] = pairs >> (positions & 31).astype(np.uint64)
    return (shifted & np.uint64((1 << width) - 1)).astype(np.int64)
