"""Segments: stretches of symbols, each coded by itself, which threads share and of which one can be decoded alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Bitstream, Bytes, Symbols, check_count
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_MAX_LANES_LOG2 = 5
_SIZES_LOG2 = range(12, 31)
_DENSE_RANGE = 1 << 22


@dataclass(frozen=True)
class Layout:
    """Segments of ``2**size_log2`` symbols, the last as long as it happens to be, in ``2**lanes_log2`` lanes each."""

    lanes_log2: int
    size_log2: int

    @classmethod
    def of(cls, symbols: int, size_log2: int) -> Layout:
        """One lane below 4096 symbols, then twice as many at each doubling: lanes cost a small part of a stream."""
        return cls(min(_MAX_LANES_LOG2, max(0, symbols.bit_length() - 12)), size_log2)

    @property
    def lanes(self) -> int:
        return 1 << self.lanes_log2

    def count(self, symbols: int) -> int:
        """Number of segments."""
        return -(-symbols >> self.size_log2)

    def bounds(self, symbols: int) -> list[tuple[int, int]]:
        """Where each segment begins and ends."""
        size = 1 << self.size_log2
        return [(begin, min(begin + size, symbols)) for begin in range(0, symbols, size)]

    def write(self, table: Writer) -> None:
        table.number(self.lanes_log2)
        table.number(self.size_log2)

    @classmethod
    def read(cls, table: Reader) -> Layout:
        layout = cls(table.number(), table.number())
        if layout.lanes_log2 > _MAX_LANES_LOG2 or layout.size_log2 not in _SIZES_LOG2:
            raise CoderError(
                f"the table has 2^{layout.lanes_log2} lanes and segments of 2^{layout.size_log2} symbols; possible are "
                f"up to 2^{_MAX_LANES_LOG2} lanes, and 2^{_SIZES_LOG2[0]} to 2^{_SIZES_LOG2[-1]} symbols"
            )
        return layout


@dataclass(frozen=True)
class Index:
    """Where the segments are in the payload.

    Attributes:
        offsets: int64 [segments + 1], in bytes, each a multiple of 4.
        escapes: number of escaped symbols of each segment, int64 [segments]; zeros where there can be none.
    """

    offsets: NDArray[np.int64]
    escapes: NDArray[np.int64]

    @classmethod
    def read(cls, table: Reader, segments: int, payload: Bytes, *, escapes: bool = False) -> Index:
        """Read the end of a table. The segments fill the payload, or it is a CoderError."""
        columns = table.numbers(segments * (1 + escapes)).reshape(segments, 1 + escapes)
        table.end()
        lengths = columns[:, 0]
        # One by one first: a sum of forged lengths may wrap around.
        if (lengths > payload.size).any() or 4 * int(lengths.sum()) != payload.size:
            raise CoderError(f"the segments of the table do not fill the payload of {payload.size} bytes")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(4 * lengths)])
        return cls(offsets, columns[:, 1] if escapes else np.zeros(segments, np.int64))

    def segment(self, payload: Bytes, number: int) -> Bytes:
        """A copy of one segment: aligned, while a payload lies anywhere in a file."""
        return payload[self.offsets[number] : self.offsets[number + 1]].copy()


def check_range(stream: Bitstream, count: int, begin: int, end: int) -> None:
    """Raise CoderError unless ``begin`` to ``end`` are some of ``count`` symbols that a stream can hold."""
    check_count(count)
    if not 0 <= begin <= end <= count:
        raise CoderError(f"cannot decode symbols {begin} to {end} of {count}")
    if not count and stream.nbytes:
        raise CoderError("no symbols are announced, yet there are bytes")


def decode_segments(
    layout: Layout, count: int, begin: int, end: int, decode: Callable[[int, Symbols], None]
) -> Symbols:
    """Symbols ``begin`` to ``end`` of ``count``; ``decode(number, out)`` fills ``out`` with one whole segment."""
    from rdo_kernels.cpu import threads

    symbols = np.empty(end - begin, np.int32)

    def decode_into_place(number: int) -> None:
        first = number << layout.size_log2
        last = min(first + (1 << layout.size_log2), count)
        if begin <= first and last <= end:
            decode(number, symbols[first - begin : last - begin])
            return
        segment = np.empty(last - first, np.int32)
        decode(number, segment)
        low, high = max(begin, first), min(end, last)
        symbols[low - begin : high - begin] = segment[low - first : high - first]

    if begin < end:
        threads.share(decode_into_place, range(begin >> layout.size_log2, layout.count(end)))
    return symbols


class Places:
    """Finds symbols among distinct ascending values (int64 [K], K > 0, within +-2**30)."""

    def __init__(self, values: NDArray[np.int64]) -> None:
        self._values, self._low = values, int(values[0])
        reach = int(values[-1]) - self._low + 1
        self._table: NDArray[np.uint32] | None = None
        if reach < _DENSE_RANGE:
            self._table = np.full(reach, len(values), np.uint32)
            self._table[values - self._low] = np.arange(len(values), dtype=np.uint32)

    def of(self, symbols: Symbols) -> NDArray[np.uint32]:
        """The place of each int32 symbol, K for those that are not there."""
        from rdo_kernels.cpu import places

        absent = np.uint32(len(self._values))
        if self._table is None:
            nearest = np.minimum(np.searchsorted(self._values, symbols), len(self._values) - 1)
            return np.where(self._values[nearest] == symbols, nearest.astype(np.uint32), absent)
        found = np.empty(symbols.size, np.uint32)
        places.find(symbols, self._low, self._table, absent, found)
        return found
