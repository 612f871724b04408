"""Segmented streams of symbols as the decoders take them: parsed tables, and payloads that nobody has looked at yet."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MAX_SYMBOL = 1 << 30
MAX_SEGMENT = 1 << 30
"""Symbols in a segment; positions within one are 32-bit integers."""
MAX_SEGMENT_BYTES = 1 << 33
"""More than 2^30 symbols can take in any code; the kernels count words of 4 bytes in 32 bits."""
MAX_ENTRIES = 1 << 16


class StreamError(ValueError):
    """Streams are malformed, truncated, too long or damaged: those of the numbers ``streams``."""

    def __init__(self, message: str, streams: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.streams = streams


class Stream(Protocol):
    """What both kinds of streams have: see :class:`RansStream`."""

    @property
    def payload(self) -> Tensor: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def segment(self) -> int: ...

    def segments(self, count: int) -> int:
        """How many segments hold ``count`` symbols."""
        ...

    def check(self, count: int) -> None:
        """Raise StreamError unless ``count`` symbols can be decoded without leaving the payload or a table."""
        ...


class RansStream(NamedTuple):
    """A stream of rANS, as in docs/coders.md.

    Attributes:
        payload: uint8 [bytes], contiguous, on the device of its output.
        offsets: where each segment begins in the payload, and last where it ends: int64 [segments + 1].
        segment: symbols in a segment, 1 to 2^30; the last may hold fewer.
        lanes: a power of two, 1 to 32.
        precision: 8 to 16.
        values: the kept symbols, int32 [K].
        frequencies: of each, and last of the escape if there is one: int64 [K] or [K + 1]; two at least, of 1 at
            least, their sum 2^precision.
        escape_width: bits of an escaped symbol, 1 to 32; 0: there are no escapes.
        escape_low: what was subtracted from escaped symbols.
        escaped: number of escaped symbols in each segment, int64 [segments]; None: there are no escapes.
    """

    payload: Tensor
    offsets: NDArray[np.int64]
    segment: int
    lanes: int
    precision: int
    values: NDArray[np.int32]
    frequencies: NDArray[np.int64]
    escape_width: int = 0
    escape_low: int = 0
    escaped: NDArray[np.int64] | None = None

    @property
    def escape(self) -> int:
        """Which entry of the frequencies is the escape; -1: none."""
        return len(self.values) if self.escape_width else -1

    def segments(self, count: int) -> int:
        return -(-count // self.segment)

    def escapes(self) -> NDArray[np.int64]:
        """Number of escaped symbols in each segment."""
        return np.zeros(len(self.offsets) - 1, np.int64) if self.escaped is None else self.escaped

    def escape_words(self) -> NDArray[np.int64]:
        """Words of 4 bytes that they take."""
        return (self.escapes() * self.escape_width + 31) >> 5

    def words(self) -> NDArray[np.int64]:
        """Words of 2 bytes in each segment, padding included."""
        return (np.diff(self.offsets) - 4 * (self.lanes + self.escape_words())) >> 1

    def check(self, count: int) -> None:
        """Raise StreamError unless ``count`` symbols can be decoded without leaving the payload or a table."""
        _check_segments(self, self.lanes, count)
        entries = len(self.values) + (self.escape_width != 0)
        if not (
            8 <= self.precision <= 16
            and 2 <= entries == len(self.frequencies) <= MAX_ENTRIES
            and int(self.frequencies.min()) >= 1
            and int(self.frequencies.max()) < 1 << self.precision  # so that the sum cannot overflow
            and int(self.frequencies.sum()) == 1 << self.precision
        ):
            raise StreamError(f"{entries} frequencies do not fill a table of {self.precision} bits")
        if len(self.values) and np.abs(self.values.astype(np.int64)).max() > MAX_SYMBOL:
            raise StreamError("a symbol of the table lies beyond +-2^30")
        escaped = self.escaped
        if (self.escape_width != 0) != (escaped is not None):
            raise StreamError("a width and numbers of escaped symbols go together")
        if escaped is not None:
            counts = np.minimum(count - np.arange(self.segments(count)) * self.segment, self.segment)
            if (
                not 0 < self.escape_width <= 32
                or abs(self.escape_low) > MAX_SYMBOL
                or len(escaped) != len(counts)
                or (escaped < 0).any()
                or (escaped > counts).any()
            ):
                raise StreamError("the escaped symbols are more or wider than can be")
        if (self.words() < 0).any():
            raise StreamError("a segment is too short for its states and escaped symbols")


class ExpGolombStream(NamedTuple):
    """A stream of Exp-Golomb codes, as in docs/coders.md.

    Attributes:
        payload, offsets, segment, lanes: as in :class:`RansStream`.
        k: order, 0 to 15.
        values: the symbols in order of rank, int32 [K]; None: numbers are symbols after zig-zag.
    """

    payload: Tensor
    offsets: NDArray[np.int64]
    segment: int
    lanes: int
    k: int
    values: NDArray[np.int32] | None = None

    def segments(self, count: int) -> int:
        return -(-count // self.segment)

    def check(self, count: int) -> None:
        """Raise StreamError unless ``count`` symbols can be decoded without leaving the payload or a table."""
        _check_segments(self, self.lanes, count)
        if not 0 <= self.k <= 15:
            raise StreamError(f"order {self.k} is not between 0 and 15")
        if self.values is not None:
            if count and not len(self.values):
                raise StreamError("no symbol has a rank")
            if len(self.values) and np.abs(self.values.astype(np.int64)).max() > MAX_SYMBOL:
                raise StreamError("a symbol of the table lies beyond +-2^30")
        if (np.diff(self.offsets) < 4 * self.lanes).any():
            raise StreamError("a segment is too short for the lengths of its lanes")


class Rows(NamedTuple):
    """Steps of a tensor: float32 [rows], contiguous, one for each ``length`` symbols."""

    steps: Tensor
    length: int


def _check_segments(stream: Stream, lanes: int, count: int) -> None:
    if not 1 <= stream.segment <= MAX_SEGMENT or lanes not in (1, 2, 4, 8, 16, 32):
        raise StreamError(f"segments of {stream.segment} symbols in {lanes} lanes; at most 2^30 in 1, 2, 4, ... 32")
    offsets = stream.offsets
    if len(offsets) != stream.segments(count) + 1:
        raise StreamError(f"{count} symbols take {stream.segments(count)} segments, the table has {len(offsets) - 1}")
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != stream.payload.numel() or (lengths < 0).any() or (offsets % 4).any():
        raise StreamError("the segments do not fill the payload")
    if (lengths >= MAX_SEGMENT_BYTES).any():
        raise StreamError("a segment is longer than can be")
