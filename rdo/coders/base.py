"""What a coder is: int32 symbols to a table and a payload, and back. Knows no law of weights and no quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from rdo.errors import CoderError, ConfigError
from rdo.registry import Registry

Bytes = NDArray[np.uint8]
Symbols = NDArray[np.int32]

MAX_SYMBOL = 2**30
MAX_COUNT = 2**40
_DENSE_RANGE = 1 << 24
_COUNTED_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Bitstream:
    """A coded sequence: ``table`` tells how to read ``payload``. Both uint8, one axis."""

    table: Bytes
    payload: Bytes

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return int(self.table.nbytes + self.payload.nbytes)


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
        low, high = int(symbols.min()), int(symbols.max())
        if max(-low, high) > MAX_SYMBOL:
            raise CoderError(f"symbols must lie within +-2^30, got {low} to {high}; use a larger step")
        if high - low < min(_DENSE_RANGE, 4 * symbols.size + 65536):
            counts = _dense_counts(symbols.reshape(-1), low, high - low + 1)
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

    def indices_of(self, symbols: Symbols) -> NDArray[np.uint32]:
        """Position of each symbol among :attr:`values`; every symbol must be there."""
        if len(self.values) and int(self.values[-1] - self.values[0]) < _DENSE_RANGE:
            low = np.int32(self.values[0])
            positions = np.zeros(int(self.values[-1] - self.values[0]) + 1, np.uint32)
            positions[self.values - low] = np.arange(len(self.values), dtype=np.uint32)
            found: NDArray[np.uint32] = positions[symbols - low]
            return found
        return np.searchsorted(self.values, symbols).astype(np.uint32)


def _dense_counts(symbols: Symbols, low: int, reach: int) -> NDArray[np.int64]:
    """How often each of ``reach`` symbols from ``low`` on occurs; threads share the symbols if counters are few."""
    from rdo_kernels.cpu import places, threads

    size = _COUNTED_TOGETHER if reach <= _COUNTED_TOGETHER >> 4 else max(symbols.size, 1)

    def count(begin: int) -> NDArray[np.int64]:
        counts = np.zeros(reach, np.int64)
        places.count(symbols[begin : begin + size], low, counts)
        return counts

    first, *others = threads.share(count, range(0, symbols.size, size))
    for counts in others:
        first += counts
    return first


@dataclass(frozen=True)
class EntropyCoder(ABC):
    """A coder; a subclass is a frozen dataclass whose fields are JSON values."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, symbols: Symbols) -> Bitstream:
        """Encode int32 symbols within +-2**30, [n]; the same symbols give the same bytes.

        Raises:
            CoderError: a symbol is out of range.
        """

    @abstractmethod
    def decode(self, stream: Bitstream, count: int) -> Symbols:
        """Return the ``count`` int32 symbols of a stream. Nothing in the stream is trusted.

        Takes memory for ``count`` symbols and a small multiple of the stream's size.

        Raises:
            CoderError: the stream is malformed, truncated, too long, or does not hold ``count`` symbols.
        """

    @abstractmethod
    def size_bytes(self, histogram: Histogram) -> int:
        """Bytes that :meth:`encode` gives for symbols with this histogram; see the coder for whether it is exact."""

    def config(self) -> dict[str, Any]:
        """A JSON-able description from which :func:`coder_from_config` builds an equal coder."""
        return {"name": self.name, **asdict(self)}


class Decoder(Protocol):
    """What reading a checkpoint needs of a coder."""

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        """As :meth:`EntropyCoder.decode`."""


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


def coder_from_config(config: dict[str, Any]) -> EntropyCoder:
    """Build a coder from what :meth:`EntropyCoder.config` returned."""
    options = dict(config)
    return make_coder(str(options.pop("name", "")), **options)


def check_count(count: int) -> None:
    """Raise CoderError unless ``count`` is a number of symbols that can be decoded."""
    if not 0 <= count <= MAX_COUNT:
        raise CoderError(f"cannot decode {count} symbols; the count must be between 0 and 2^40")
