"""Segments: stretches of symbols, each coded by itself, which threads share and of which any can be decoded alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Bitstream, Bytes, SegmentDecoder, Symbols
from rdo.coders.varint import Reader
from rdo.errors import CoderError

MAX_COUNT = 2**40
SIZES_LOG2 = range(12, 31)
WHOLE = 40
"""In place of a size: the one segment of a stream from before there were segments."""
_TOGETHER = 2
"""Segments that a thread decodes at once: two neighbours take a decoder of rANS little longer than one."""
_MAX_LANES_LOG2 = 5
_DENSE_RANGE = 1 << 22

Fetch = Callable[[int, int], Bytes]
"""The bytes of the segments from the first number up to the second (exclusive), aligned to 4 bytes."""


@dataclass(frozen=True)
class Layout:
    """How an encoder divides symbols: segments of ``2**size_log2``, each of ``2**lanes_log2`` interleaved lanes."""

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
        return bounds(symbols, self.size_log2)


def bounds(symbols: int, size_log2: int) -> list[tuple[int, int]]:
    """Where each segment of ``2**size_log2`` symbols begins and ends."""
    size = 1 << size_log2
    return [(begin, min(begin + size, symbols)) for begin in range(0, symbols, size)]


def read_lanes(table: Reader) -> int:
    """The binary logarithm of the number of lanes, from a table."""
    lanes_log2 = table.number()
    if lanes_log2 > _MAX_LANES_LOG2:
        raise CoderError(f"the table has 2^{lanes_log2} lanes; possible are up to 2^{_MAX_LANES_LOG2}")
    return lanes_log2


def join(table: Bytes, segments: list[Bytes], size_log2: int) -> Bitstream:
    """A bitstream of these segments."""
    lengths = np.array([segment.size for segment in segments], np.int64)
    payload = np.concatenate(segments) if segments else np.empty(0, np.uint8)
    return Bitstream(table, payload, lengths, size_log2)


@dataclass(frozen=True)
class OneByOne(ABC):
    """A :class:`rdo.coders.base.SegmentDecoder` that takes segments one by one."""

    segment_log2: int

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        """Decode neighbouring segments."""
        ends, size = np.cumsum(lengths), 1 << self.segment_log2
        for number, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
            self.decode_segment(payload[begin:end], first + number, out[number * size : (number + 1) * size])

    @abstractmethod
    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        """Decode one segment, the ``number``-th of its stream, into ``out``, as long as its symbols.

        Raises:
            CoderError: it is malformed, truncated, too long, or does not hold its symbols.
        """


@dataclass(frozen=True)
class Segments:
    """Where the segments of ``count`` symbols are in their payload.

    Attributes:
        offsets: int64 [segments + 1], in bytes.
    """

    count: int
    size_log2: int
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], payload_bytes: int, count: int, size_log2: int) -> Segments:
        """Check that segments of these lengths (int64, none negative) can hold ``count`` symbols and fill the payload.

        Raises:
            CoderError: they cannot, or do not.
        """
        if not 0 <= count <= MAX_COUNT:
            raise CoderError(f"cannot decode {count} symbols; the count must be between 0 and 2^40")
        if size_log2 not in SIZES_LOG2 and size_log2 != WHOLE:
            raise CoderError(f"segments of 2^{size_log2} symbols; 2^{SIZES_LOG2[0]} to 2^{SIZES_LOG2[-1]} are possible")
        if len(lengths) != -(-count >> size_log2):
            raise CoderError(f"{count} symbols take {-(-count >> size_log2)} segments, there are {len(lengths)}")
        # One by one first: a sum of forged lengths may wrap around.
        if (lengths > payload_bytes).any() or int(lengths.sum()) != payload_bytes:
            raise CoderError(f"the segments do not fill the payload of {payload_bytes} bytes")
        return cls(count, size_log2, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def runs(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Neighbouring segments, from a number up to another (exclusive), in which symbols ``begin`` to ``end`` are."""
        if begin == end:
            return []
        last = -(-end >> self.size_log2)
        return [(first, min(first + _TOGETHER, last)) for first in range(begin >> self.size_log2, last, _TOGETHER)]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The symbols of segments ``first`` to ``last`` (exclusive)."""
        return first << self.size_log2, min(last << self.size_log2, self.count)

    def fetch(self, payload: Bytes) -> Fetch:
        """Segments out of a payload in memory. Copies: aligned, while a payload lies anywhere in a file."""
        return lambda first, last: payload[self.offsets[first] : self.offsets[last]].copy()


@dataclass(frozen=True)
class Stream:
    """All that is needed to decode any part of a tensor's symbols."""

    decoder: SegmentDecoder
    segments: Segments
    fetch: Fetch

    def symbols(self, begin: int, end: int) -> Symbols:
        """Symbols ``begin`` to ``end`` (exclusive).

        Raises:
            CoderError: a segment with one of them is damaged; others are not looked at.
        """
        from rdo_kernels.cpu import threads

        symbols = np.empty(end - begin, np.int32)

        def decode(run: tuple[int, int]) -> None:
            first, last = self.segments.span(*run)
            if begin <= first and last <= end:
                self._decode(run, symbols[first - begin : last - begin])
            else:
                part = np.empty(last - first, np.int32)
                self._decode(run, part)
                low, high = max(begin, first), min(end, last)
                symbols[low - begin : high - begin] = part[low - first : high - first]

        threads.share(decode, self.segments.runs(begin, end))
        return symbols

    def each(self, begin: int, end: int, deliver: Callable[[int, Symbols], None]) -> None:
        """Call ``deliver(at, symbols)`` for pieces of ``begin`` to ``end``, from several threads, in any order.

        ``at`` is the place of the first of these symbols in the tensor.

        Raises:
            CoderError: as :meth:`symbols`.
        """
        from rdo_kernels.cpu import threads

        def decode(run: tuple[int, int]) -> None:
            first, last = self.segments.span(*run)
            part = np.empty(last - first, np.int32)
            self._decode(run, part)
            low, high = max(begin, first), min(end, last)
            deliver(low, part[low - first : high - first])

        threads.share(decode, self.segments.runs(begin, end))

    def _decode(self, run: tuple[int, int], out: Symbols) -> None:
        lengths = np.diff(self.segments.offsets[run[0] : run[1] + 1])
        self.decoder.decode(self.fetch(*run), lengths, run[0], out)


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
