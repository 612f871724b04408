"""What a coder is: int32 symbols to a table and a payload, and back. Knows no law of weights and no quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rdo.errors import CoderError, ConfigError
from rdo.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from rdo_kernels.streams import Stream as KernelStream

Bytes = NDArray[np.uint8]
Symbols = NDArray[np.int32]

MAX_SYMBOL = 2**30
_DENSE_RANGE = 1 << 24
_COUNTED_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Bitstream:
    """A coded sequence, in segments of ``2**segment_log2`` symbols (the last may be shorter), each decodable by itself.

    Attributes:
        table: how to read any segment, uint8, one axis.
        payload: the segments one after another, uint8, one axis.
        lengths: bytes of each segment, int64 [segments].
        segment_log2: 12 to 30.
    """

    table: Bytes
    payload: Bytes
    lengths: NDArray[np.int64]
    segment_log2: int

    @property
    def nbytes(self) -> int:
        """Bytes of table and payload."""
        return int(self.table.nbytes + self.payload.nbytes)


class SegmentDecoder(Protocol):
    """What a parsed table gives: it decodes whole segments, from any thread."""

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        """Decode neighbouring segments, of which the first has the number ``first``, into ``out``.

        Args:
            payload: these segments alone, one after another; C-contiguous and aligned to 4 bytes. Nothing in it is
                trusted.
            lengths: bytes of each, int64.
            out: int32, as long as their symbols.

        Raises:
            CoderError: a segment is malformed, truncated, too long, or does not hold its symbols.
        """


@runtime_checkable
class KernelDecoder(SegmentDecoder, Protocol):
    """A decoder whose streams :mod:`rdo_kernels.decode` can decode, too: on a GPU, straight into weights."""

    def kernel_stream(self, payload: Tensor, offsets: NDArray[np.int64]) -> KernelStream:
        """All segments of a stream, as the kernels take them.

        Args:
            payload: uint8 [bytes], on the device that is to decode it. Nothing in it is trusted.
            offsets: where each segment begins, and last where it ends: int64 [segments + 1].
        """


@dataclass(frozen=True)
class Histogram:
    """Distinct symbols, ascending, and how often each occurs (> 0); int64 [K] both."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, symbols: Symbols) -> Histogram:
        """Count int32 symbols; [n], any n.

        Raises:
            CoderError: a symbol exceeds 2**30 in absolute value.
        """
        if symbols.size == 0:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        low, high = _bounds(symbols)
        if max(-low, high) > MAX_SYMBOL:
            raise CoderError(f"symbols must lie within +-2^30, got {low} to {high}; use a larger step")
        if high - low < min(_DENSE_RANGE, 4 * symbols.size + 65536):
            counts = _dense_counts(symbols, low, high - low + 1)
            present = np.flatnonzero(counts)
            return cls(present + low, counts[present])
        values, found = np.unique(symbols, return_counts=True)
        return cls(values.astype(np.int64), found.astype(np.int64))

    @property
    def count(self) -> int:
        """Number of symbols, not of distinct ones."""
        return int(self.counts.sum())

    def entropy_bits(self) -> float:
        """``count`` times the order-0 entropy: what an ideal static coder would need, in bits, tables aside."""
        if len(self.counts) < 2:
            return 0.0
        return float((self.counts * np.log2(self.count / self.counts)).sum())


def _dense_counts(symbols: Symbols, low: int, reach: int) -> NDArray[np.int64]:
    """How often each of ``reach`` symbols from ``low`` on occurs; threads share the symbols if counters are few."""
    from rdo_kernels.cpu import symbols as loops
    from rdo_kernels.cpu import threads

    size = _COUNTED_TOGETHER if reach <= _COUNTED_TOGETHER >> 4 else max(symbols.size, 1)

    def count(begin: int) -> NDArray[np.int64]:
        counts = np.zeros(reach, np.int64)
        loops.histogram(symbols[begin : begin + size], low, counts)
        return counts

    first, *others = threads.share(count, range(0, symbols.size, size))
    for counts in others:
        first += counts
    return first


def _bounds(symbols: Symbols) -> tuple[int, int]:
    """The smallest and the largest of symbols, [n > 0]."""
    from rdo_kernels.cpu import symbols as loops
    from rdo_kernels.cpu import threads

    parts = [symbols[begin : begin + _COUNTED_TOGETHER] for begin in range(0, symbols.size, _COUNTED_TOGETHER)]
    lows, highs = zip(*threads.share(loops.bounds, parts), strict=True)
    return int(min(lows)), int(max(highs))


@dataclass(frozen=True)
class EntropyCoder(ABC):
    """A coder; a subclass is a frozen dataclass whose fields are JSON values.

    Symbols are those of a tensor in C order. ``row_length`` is that of :func:`rdo.quantizers.row_length`: symbol i is
    in column ``i % row_length``. Coders that look at neighbours use it, others do not.
    """

    name: ClassVar[str]
    exact_size: ClassVar[bool] = True
    """Whether the bytes follow from the histogram, as :meth:`size_bytes` gives them: not if order changes them."""

    @abstractmethod
    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        """Encode int32 symbols within +-2**30, [n]; the same symbols give the same bytes.

        Raises:
            CoderError: a symbol is out of range.
        """

    @abstractmethod
    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        """Parse the table of a stream of ``count`` > 0 symbols. Nothing in it is trusted.

        Takes memory for a small multiple of the table's size, or a constant.

        Raises:
            CoderError: the table is malformed, truncated or too long.
        """

    @abstractmethod
    def size_bytes(self, histogram: Histogram) -> int:
        """Bytes that :meth:`encode` gives for symbols with this histogram; see the coder for whether it is exact."""

    def decode(self, stream: Bitstream, count: int, row_length: int = 1) -> Symbols:
        """Return the ``count`` int32 symbols of a stream. Nothing in the stream is trusted.

        Takes memory for ``count`` symbols and a small multiple of the stream's size.

        Raises:
            CoderError: the stream is malformed, truncated, too long, or does not hold ``count`` symbols.
        """
        return self.decode_range(stream, count, 0, count, row_length)

    def decode_range(self, stream: Bitstream, count: int, begin: int, end: int, row_length: int = 1) -> Symbols:
        """Symbols ``begin`` to ``end`` (exclusive) of the ``count`` in a stream, from the segments that hold them.

        Raises:
            CoderError: as :meth:`decode`; other segments are not looked at.
        """
        from rdo.coders.segments import Segments, Stream

        segments = Segments.of(stream.lengths, stream.payload.size, count, stream.segment_log2)
        if not 0 <= begin <= end <= count:
            raise CoderError(f"cannot decode symbols {begin} to {end} of {count}")
        if not count:
            if stream.nbytes:
                raise CoderError("no symbols are announced, yet there are bytes")
            return np.empty(0, np.int32)
        decoder = self.decoder(stream.table, count, stream.segment_log2, row_length)
        return Stream(decoder, segments, segments.fetch(stream.payload)).symbols(begin, end)

    def config(self) -> dict[str, Any]:
        """A JSON-able description from which :func:`coder_from_config` builds an equal coder."""
        return {"name": self.name, **asdict(self)}


CODERS: Registry[type[EntropyCoder]] = Registry("coder", package="rdo.coders", group="rdo.coders")


def make_coder(name: str, **options: Any) -> EntropyCoder:
    """Build a coder by its registered name.

    Raises:
        UnknownNameError: no coder has this name.
        ConfigError: an option is unknown or out of range.
    """
    coder = CODERS.get(name)
    try:
        return coder(**options)
    except TypeError as error:
        raise ConfigError(f"bad options for coder {name!r}: {error}") from error


def make_coders(given: EntropyCoder | str | Sequence[EntropyCoder | str]) -> list[EntropyCoder]:
    """Coders from what a user gave: one or several, each a coder or its registered name.

    Raises:
        UnknownNameError: no coder has this name.
        ConfigError: there are none.
    """
    several = [given] if isinstance(given, EntropyCoder | str) else given
    if not several:
        raise ConfigError("no coder is given; take for instance 'rans'")
    return [make_coder(coder) if isinstance(coder, str) else coder for coder in several]


def coder_from_config(config: dict[str, Any]) -> EntropyCoder:
    """Build a coder from what :meth:`EntropyCoder.config` returned."""
    options = dict(config)
    return make_coder(str(options.pop("name", "")), **options)
