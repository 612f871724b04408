"""Context modelling: below the order-0 entropy where rows and columns differ, at a fraction of rANS's speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import OneByOne, bounds, join
from rdo.errors import CoderError

_SEGMENT_SIZE_LOG2 = 20
_OVERHEAD_BYTES = 8


@CODERS.register("context")
@dataclass(frozen=True)
class Context(EntropyCoder):
    """Adaptive binary range coder; the context of a symbol is how large others in its row and its column were."""

    name: ClassVar[str] = "context"
    order_0: ClassVar[bool] = False

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        from rdo_kernels.cpu import context_loops, threads

        if symbols.size and max(-int(symbols.min()), int(symbols.max())) > MAX_SYMBOL:
            raise CoderError("symbols must lie within +-2^30; use a larger step")

        def encode(span: tuple[int, int]) -> Bytes:
            part = np.ascontiguousarray(symbols[slice(*span)])
            room = np.empty(part.size // 2 + 256, np.uint8)
            data, length = context_loops.code(part, span[0] % row_length, row_length, room, False)
            segment: Bytes = data[:length]
            return segment

        segments = threads.share(encode, bounds(symbols.size, _SEGMENT_SIZE_LOG2))
        return join(np.empty(0, np.uint8), segments, _SEGMENT_SIZE_LOG2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        if table.size:
            raise CoderError(f"there should be no table, and it has {table.size} bytes")
        return _Decoder(segment_log2, row_length)

    def size_bytes(self, histogram: Histogram) -> int:
        """An estimate, mostly from above: the order-0 entropy. The size depends on the order of the symbols."""
        return int(histogram.entropy_bits() / 8) + _OVERHEAD_BYTES if histogram.count else 0


@dataclass(frozen=True)
class _Decoder(OneByOne):
    row_length: int

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        from rdo_kernels.cpu import context_loops

        column = (number << self.segment_log2) % self.row_length
        _, used = context_loops.code(out, column, self.row_length, data.copy(), True)
        if used != data.size:
            raise CoderError("the payload is truncated or damaged")
