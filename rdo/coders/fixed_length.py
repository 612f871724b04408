"""Fixed-length code: the distance from the smallest symbol in as many bits as the range needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import OneByOne, bounds, join
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_SEGMENT_SIZE_LOG2 = 20


@CODERS.register("fixed_length")
@dataclass(frozen=True)
class FixedLength(EntropyCoder):
    """Fixed length: ``ceil(log2(max - min + 1))`` bits a symbol. The table is the minimum and the width."""

    name: ClassVar[str] = "fixed_length"

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        if symbols.size == 0:
            return join(np.empty(0, np.uint8), [], _SEGMENT_SIZE_LOG2)
        from rdo_kernels.cpu import prefix, threads

        low, high = int(symbols.min()), int(symbols.max())
        if max(-low, high) > MAX_SYMBOL:
            raise CoderError(f"symbols must lie within +-2^30, got {low} to {high}; use a larger step")
        width = (high - low).bit_length()

        def encode(span: tuple[int, int]) -> Bytes:
            distances = (symbols[slice(*span)].astype(np.int64) - low).astype(np.uint32)
            data = np.zeros(-(-distances.size * width // 8), np.uint8)
            if width:
                prefix.encode_fixed(distances, width, data)
            return data

        segments = threads.share(encode, bounds(symbols.size, _SEGMENT_SIZE_LOG2))
        return join(_table(low, width), segments, _SEGMENT_SIZE_LOG2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        low, width = reader.signed(), reader.number()
        reader.end()
        if width > 32 or not -MAX_SYMBOL <= low <= MAX_SYMBOL:
            raise CoderError(f"the table asks for {width} bits from {low}, beyond what symbols can be")
        return _Decoder(segment_log2, low, width)

    def size_bytes(self, histogram: Histogram) -> int:
        """Exact."""
        if not len(histogram.values):
            return 0
        low = int(histogram.values[0])
        width = (int(histogram.values[-1]) - low).bit_length()
        return int(_table(low, width).size) - (-histogram.count * width // 8)


@dataclass(frozen=True)
class _Decoder(OneByOne):
    low: int
    width: int

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        from rdo_kernels.cpu import prefix

        expected = -(-out.size * self.width // 8)
        if data.size != expected:
            raise CoderError(f"{out.size} symbols of {self.width} bits take {expected} bytes, not {data.size}")
        distances = np.zeros(out.size, np.uint32)
        if self.width:
            prefix.decode_fixed(prefix.padded(data), 8 * expected, self.width, distances)
            filled = out.size * self.width % 8
            if filled and int(data[-1]) << filled & 255:
                raise CoderError("what fills the last byte is not zero")
            if int(distances.max()) + self.low > MAX_SYMBOL:
                raise CoderError("a symbol lies beyond +-2^30")
        out[:] = distances.astype(np.int64) + self.low


def _table(low: int, width: int) -> Bytes:
    table = Writer()
    table.signed(low)
    table.number(width)
    return table.bytes()
