"""Context modelling: each symbol coded by what its row, its column and its neighbours let expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import OneByOne, bounds, join
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_SEGMENT_SIZE_LOG2 = 20
_MAX_SHIFT = 28
_TYPICAL_HIGH = 4
"""Magnitudes are shifted until their mean is at most this: one decision for each unit."""
_END_BYTES = 2
"""What notices truncation, in each segment."""
_LEARNING = 0.003
"""What adapting costs where there is nothing to be learned, of the entropy."""


@CODERS.register("context")
@dataclass(frozen=True)
class Context(EntropyCoder):
    """Context modelling: symbols as adaptive binary decisions, predicted from the magnitudes in their row and column.

    Takes less than the order-0 entropy wherever rows or columns of a matrix differ in scale or lean to one sign, and
    some ten times as long as the coder ``rans``.
    """

    name: ClassVar[str] = "context"
    exact_size: ClassVar[bool] = False

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        from rdo_kernels.cpu import context, threads

        histogram = Histogram.of(symbols)
        spans = bounds(symbols.size, _SEGMENT_SIZE_LOG2)
        shift = _shift(histogram)
        table = _table(histogram, shift)
        if len(histogram.values) < 2:
            return join(table, [np.empty(0, np.uint8) for _ in spans], _SEGMENT_SIZE_LOG2)

        def encode(span: tuple[int, int]) -> Bytes:
            return context.encode(symbols[slice(*span)], row_length, span[0] % row_length, shift)

        return join(table, threads.share(encode, spans), _SEGMENT_SIZE_LOG2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        kind = reader.number()
        only = reader.signed() if kind == 0 else None
        reader.end()
        if kind > _MAX_SHIFT + 1:
            raise CoderError(f"the table shifts magnitudes by {kind - 1} bits; at most {_MAX_SHIFT} are possible")
        if only is not None and abs(only) > MAX_SYMBOL:
            raise CoderError("the table holds a symbol beyond +-2^30")
        return _Decoder(segment_log2, row_length, kind - 1, only)

    def size_bytes(self, histogram: Histogram) -> int:
        """About what symbols in no order take: their order-0 entropy. An order that tells something takes less."""
        table = int(_table(histogram, _shift(histogram)).size)
        if len(histogram.values) < 2:
            return table
        segments = -(-histogram.count >> _SEGMENT_SIZE_LOG2)
        return table + int(histogram.entropy_bits() / 8 * (1 + _LEARNING)) + segments * _END_BYTES


@dataclass(frozen=True)
class _Decoder(OneByOne):
    row_length: int
    shift: int
    only: int | None

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        from rdo_kernels.cpu import context

        if self.only is None:
            column = (number << self.segment_log2) % self.row_length
            if not context.decode(data, self.row_length, column, self.shift, out):
                raise CoderError("a segment is truncated or damaged")
        elif data.size:
            raise CoderError("the payload of a single repeated symbol must be empty")
        else:
            out[:] = self.only


def _shift(histogram: Histogram) -> int:
    """Low bits of magnitudes that are coded as they are."""
    if not histogram.count:
        return 0
    total = int((np.abs(histogram.values) * histogram.counts).sum())
    return min((total // (_TYPICAL_HIGH * histogram.count)).bit_length(), _MAX_SHIFT)


def _table(histogram: Histogram, shift: int) -> Bytes:
    """0 and the only symbol there is, or 1 + the shift; nothing if there are no symbols."""
    table = Writer()
    if len(histogram.values) == 1:
        table.number(0)
        table.signed(int(histogram.values[0]))
    elif histogram.count:
        table.number(1 + shift)
    return table.bytes()
