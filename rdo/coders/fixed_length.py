"""Fixed-length code: the distance from the smallest symbol in as many bits as the range needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, EntropyCoder, Histogram, Symbols, check_count
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError


@CODERS.register("fixed_length")
@dataclass(frozen=True)
class FixedLength(EntropyCoder):
    """Fixed length: ``ceil(log2(max - min + 1))`` bits a symbol. The table is the minimum and the width."""

    name: ClassVar[str] = "fixed_length"

    def encode(self, symbols: Symbols) -> Bitstream:
        if symbols.size == 0:
            return Bitstream(np.empty(0, np.uint8), np.empty(0, np.uint8))
        from rdo_kernels.cpu import prefix

        low, high = int(symbols.min()), int(symbols.max())
        if max(-low, high) > MAX_SYMBOL:
            raise CoderError(f"symbols must lie within +-2^30, got {low} to {high}; use a larger step")
        width = (high - low).bit_length()
        payload = np.zeros(-(-symbols.size * width // 8), np.uint8)
        if width:
            distances = (symbols.astype(np.int64) - low).astype(np.uint32)
            prefix.encode_fixed(distances, width, payload)
        return Bitstream(_table(low, width), payload)

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        check_count(count)
        if count == 0:
            if stream.nbytes:
                raise CoderError("no symbols are announced, yet there are bytes")
            return np.empty(0, np.int32)
        from rdo_kernels.cpu import prefix

        reader = Reader(stream.table)
        low, width = reader.signed(), reader.number()
        reader.end()
        if width > 32 or not -MAX_SYMBOL <= low <= MAX_SYMBOL:
            raise CoderError(f"the table asks for {width} bits from {low}, beyond what symbols can be")
        if stream.payload.size != -(-count * width // 8):
            raise CoderError(
                f"{count} symbols of {width} bits take {-(-count * width // 8)} bytes, not {stream.payload.size}"
            )
        distances = np.zeros(count, np.uint32)
        if width:
            prefix.decode_fixed(prefix.padded(stream.payload), 8 * stream.payload.size, width, distances)
            if int(distances.max()) + low > MAX_SYMBOL:
                raise CoderError("a symbol lies beyond +-2^30")
        return (distances.astype(np.int64) + low).astype(np.int32)

    def size_bytes(self, histogram: Histogram) -> int:
        """Exact."""
        if not len(histogram.values):
            return 0
        low = int(histogram.values[0])
        width = (int(histogram.values[-1]) - low).bit_length()
        return int(_table(low, width).size) - (-histogram.count * width // 8)


def _table(low: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    table = Writer()
    table.signed(low)
    table.number(width)
    return table.bytes()
