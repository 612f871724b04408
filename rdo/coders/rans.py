"""rANS: a range coder that comes within a fraction of a percent of the order-0 entropy, at any rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.rans_decoder import Single, Table
from rdo.coders.rans_model import Model, best_model
from rdo.coders.rans_table import write_frequencies
from rdo.coders.segments import Layout, Places, join
from rdo.coders.varint import Reader, Writer

_SEGMENT_BITS = 1 << 20
"""A segment's payload has this many bits or more, so that its states (128 bytes) are at most 0.1 % of it."""
_SEGMENT_SIZES_LOG2 = range(18, 22)
_SINGLE_SIZE_LOG2 = 30
_LANE_BYTES = 3
"""What a lane adds to the information in a segment: two bytes of its first state, and one, on average, of its last."""
_DENSE_RANGE = 1 << 22


@CODERS.register("rans")
@dataclass(frozen=True)
class RANS(EntropyCoder):
    """rANS: static order-0 range coding in segments, of up to 32 interleaved states each; frequencies of 8 to 16 bits.

    Symbols too rare for a slot of the table escape to a fixed-length code. Frequencies are written out, or implied by
    the shape and scale of a generalized Gaussian. Precision, escapes and the kind of table are those of least total
    size, or a smaller precision if that costs less than 0.02 %.
    """

    name: ClassVar[str] = "rans"

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        histogram = Histogram.of(symbols)
        if len(histogram.values) < 2:
            segments = [np.empty(0, np.uint8)] * -(-histogram.count >> _SINGLE_SIZE_LOG2)
            return join(_single(histogram), segments, _SINGLE_SIZE_LOG2)
        model = best_model(histogram)
        return encode_segments(symbols, model, _layout(histogram.count, model))

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        precision = reader.number()
        if precision == 0:
            return Single.read(reader)
        decoder = Table.read(reader, precision, lambda: segment_log2)
        if decoder.width:
            decoder = decoder.with_escapes(reader.numbers(-(-count >> segment_log2)))
        reader.end()
        return decoder

    def size_bytes(self, histogram: Histogram) -> int:
        """Within 16 bytes and 0.1 %: the last bytes of each lane depend on the order of the symbols."""
        if len(histogram.values) < 2:
            return int(_single(histogram).size)
        model = best_model(histogram)
        layout = _layout(histogram.count, model)
        segments = layout.count(histogram.count)
        payload = int(model.payload_bits / 8) + segments * (layout.lanes * _LANE_BYTES + 2)
        escapes = np.full(segments, model.escapes // segments)
        return payload + int(_table(model, layout, escapes).size)


def encode_segments(symbols: Symbols, model: Model, layout: Layout) -> Bitstream:
    """Encode symbols by a model that suits them; the segments may have any layout."""
    from rdo_kernels.cpu import rans_loops, threads
    from rdo_kernels.cpu import symbols as loops

    index = _index(model)
    escape = np.uint16(len(model.kept))

    def encode(bounds: tuple[int, int]) -> tuple[Bytes, int]:
        part = symbols[slice(*bounds)]
        indices, escapes = index(part)
        states, words = np.empty((1, layout.lanes), np.uint32), np.empty(part.size, np.uint16)
        [first] = rans_loops.encode(indices, model.frequencies, model.precision, part.size, states, words)
        escaped = np.empty(escapes, np.int32)
        if escapes:
            loops.take_escaped(part, indices, escape, escaped)
        packed = _pack(escaped.astype(np.int64) - model.low, model.width)
        data = [states[0].astype("<u4"), packed.astype("<u4"), words[first:].astype("<u2", copy=False)]
        padding = np.zeros(-2 * (words.size - first) % 4, np.uint8)
        return np.concatenate([*(array.view(np.uint8) for array in data), padding]), escapes

    segments, escapes = zip(*threads.share(encode, layout.bounds(symbols.size)), strict=True)
    return join(_table(model, layout, np.array(escapes, np.int64)), list(segments), layout.size_log2)


def _index(model: Model) -> Callable[[Symbols], tuple[NDArray[np.uint16], int]]:
    """What gives the place of symbols in the table, that of the escape for others, and how many those are."""
    from rdo_kernels.cpu import symbols as loops

    low, reach = int(model.kept[0]), int(model.kept[-1] - model.kept[0]) + 1
    if reach == len(model.kept) < 1 << 16:

        def subtract(symbols: Symbols) -> tuple[NDArray[np.uint16], int]:
            indices = np.empty(symbols.size, np.uint16)
            return indices, int(loops.index_run(symbols, low, reach, indices))

        return subtract
    if reach > _DENSE_RANGE:
        places = Places(model.kept)

        def search(symbols: Symbols) -> tuple[NDArray[np.uint16], int]:
            found = places.of(symbols)
            return found.astype(np.uint16), int((found == len(model.kept)).sum())

        return search
    table = np.full(reach + 1, len(model.kept) if model.width else 0, np.uint16)
    table[model.kept - low] = np.arange(len(model.kept))

    def look_up(symbols: Symbols) -> tuple[NDArray[np.uint16], int]:
        indices = np.empty(symbols.size, np.uint16)
        escapes = int(loops.index(symbols, low, table, indices))
        return indices, escapes if model.width else 0

    return look_up


def _layout(count: int, model: Model) -> Layout:
    sizes = _SEGMENT_SIZES_LOG2
    size = next((s for s in sizes if model.payload_bits * 2**s >= _SEGMENT_BITS * count), sizes[-1])
    return Layout.of(count, size)


def _single(histogram: Histogram) -> Bytes:
    table = Writer()
    if len(histogram.values):
        table.number(0)
        table.signed(int(histogram.values[0]))
    return table.bytes()


def _table(model: Model, layout: Layout, escapes: NDArray[np.int64]) -> Bytes:
    """``escapes`` are the numbers of escaped symbols of the segments, int64."""
    table = Writer()
    table.number(model.precision)
    table.number(layout.lanes_log2)
    table.number(model.width)
    if model.width:
        table.signed(model.low)
    write_frequencies(table, model)
    if model.width:
        table.numbers(escapes)
    return table.bytes()


def _pack(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Numbers below 2**width in as many bits each, least significant first in a sequence of words."""
    positions = np.arange(len(numbers)) * width
    shifted = numbers.astype(np.uint64) << (positions & 31).astype(np.uint64)
    words = np.zeros(-(-len(numbers) * width // 32) + 1, np.uint64)
    np.bitwise_or.at(words, positions >> 5, shifted & np.uint64(0xFFFFFFFF))
    np.bitwise_or.at(words, (positions >> 5) + 1, shifted >> np.uint64(32))
    return words[:-1].astype(np.uint32)
