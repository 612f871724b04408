"""Fixed-length code: the distance from the smallest symbol in as many bits as the range needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import bounds, join
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
        return _Decoder(low, width, 1 << segment_log2)

    def size_bytes(self, histogram: Histogram) -> int:
        """Exact."""
        if not len(histogram.values):
            return 0
        low = int(histogram.values[0])
        width = (int(histogram.values[-1]) - low).bit_length()
        return int(_table(low, width).size) - (-histogram.count * width // 8)


@dataclass(frozen=True)
class _Decoder:
    low: int
    width: int
    segment: int

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        from rdo_kernels.cpu import prefix

        ends = np.cumsum(lengths)
        for number, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
            part = out[number * self.segment : (number + 1) * self.segment]
            expected = -(-part.size * self.width // 8)
            if end - begin != expected:
                raise CoderError(f"{part.size} symbols of {self.width} bits take {expected} bytes, not {end - begin}")
            distances = np.zeros(part.size, np.uint32)
            if self.width:
                prefix.decode_fixed(prefix.padded(payload[begin:end]), 8 * expected, self.width, distances)
                filled = part.size * self.width % 8
                if filled and int(payload[end - 1]) << filled & 255:
                    raise CoderError("what fills the last byte is not zero")
                if int(distances.max()) + self.low > MAX_SYMBOL:
                    raise CoderError("a symbol lies beyond +-2^30")
            part[:] = distances.astype(np.int64) + self.low


def _table(low: int, width: int) -> Bytes:
    table = Writer()
    table.signed(low)
    table.number(width)
    return table.bytes()
