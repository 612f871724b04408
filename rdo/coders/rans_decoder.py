"""What the tables of rANS streams are parsed into, and decoding by them: docs/coders.md, "rans"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import MAX_SYMBOL, Bytes, Symbols
from rdo.coders.rans_model import PRECISIONS
from rdo.coders.rans_table import Frequencies, read_frequencies
from rdo.coders.segments import read_lanes
from rdo.coders.varint import Reader
from rdo.errors import CoderError

if TYPE_CHECKING:
    from torch import Tensor

    from rdo_kernels.streams import RansStream

ESCAPE = np.iinfo(np.int32).min
"""Stands in a table of slots for a value that no symbol can have."""
_NO_ESCAPES = np.empty(0, np.int64)


@dataclass(frozen=True)
class Single:
    """The decoder of one symbol that is repeated: its segments are empty."""

    value: int

    @classmethod
    def read(cls, reader: Reader) -> Single:
        """Read the rest of the table."""
        value = reader.signed()
        reader.end()
        if abs(value) > MAX_SYMBOL:
            raise CoderError("the single repeated symbol lies beyond +-2^30")
        return cls(value)

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        if payload.size:
            raise CoderError("the payload of a single repeated symbol must be empty")
        out[:] = self.value


@dataclass(frozen=True)
class Table:
    """What a table says, as a decoder; attributes as those of a Model.

    Attributes:
        values: the kept symbols, int32 [K], or [K + 1] with ESCAPE at the end.
        escapes: number of escaped symbols of each segment, int64 [segments]; empty where there can be none.
    """

    precision: int
    lanes: int
    segment_log2: int
    width: int
    low: int
    values: NDArray[np.int32]
    frequencies: NDArray[np.int64]
    escapes: NDArray[np.int64]

    @classmethod
    def read(
        cls,
        reader: Reader,
        precision: int,
        segment_log2: Callable[[], int],
        frequencies_of: Callable[..., Frequencies] = read_frequencies,
    ) -> Table:
        """Read all but the precision before and the escapes behind; version 2 had the size of a segment there, too."""
        if precision not in PRECISIONS:
            raise CoderError(f"the table has {precision} bits of precision; 8 to 16 are possible")
        lanes, size, width = 1 << read_lanes(reader), segment_log2(), reader.number()
        low = reader.signed() if width else 0
        if width > 32 or abs(low) > MAX_SYMBOL:
            raise CoderError(f"escaped symbols of {width} bits from {low} are beyond what symbols can be")
        values, frequencies = frequencies_of(reader, precision, escapes=width > 0)
        entries = np.append(values, ESCAPE) if width else values
        return cls(precision, lanes, size, width, low, entries.astype(np.int32), frequencies, _NO_ESCAPES)

    def with_escapes(self, escapes: NDArray[np.int64]) -> Table:
        """The same with these numbers of escaped symbols."""
        return replace(self, escapes=escapes)

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        from rdo_kernels.cpu import rans_loops

        size, segments = min(1 << self.segment_log2, out.size), len(lengths)
        counts = np.minimum(out.size - np.arange(segments) * size, size)
        escapes = self.escapes[first : first + segments] if self.width else np.zeros(segments, np.int64)
        self._check(payload, lengths, counts, escapes)
        ends = np.cumsum(lengths)
        begins = ends - lengths
        middles = begins + 4 * self.lanes
        firsts = middles + 4 * -(-escapes * self.width // 32)
        states = np.stack([payload[begin : begin + 4 * self.lanes] for begin in begins]).view("<u4").astype(np.uint32)
        words = payload.view("<u2").astype(np.uint16, copy=False)
        model = self.values, self.frequencies, self.precision
        used = rans_loops.decode(words, firsts >> 1, ends >> 1, states, *model, size, out)
        missing = (ends >> 1) - used
        # One word of zeros may fill a segment.
        padded = (missing == 1) & (words[(ends >> 1) - 1] == 0)
        if ((missing != 0) & ~padded).any() or (states != rans_loops.LOW).any():
            raise CoderError("the payload is truncated or damaged")
        if self.width:
            for number in range(segments):
                data = payload[middles[number] : firsts[number]]
                self._fill_escapes(data, int(escapes[number]), out[number * size : (number + 1) * size])

    def kernel_stream(self, payload: Tensor, offsets: NDArray[np.int64]) -> RansStream:
        """The stream as :mod:`rdo_kernels.decode` takes it."""
        from rdo_kernels.streams import RansStream

        kept, escapes = (self.values[:-1], self.escapes) if self.width else (self.values, None)
        model = self.precision, kept, self.frequencies, self.width, self.low, escapes
        return RansStream(payload, offsets, 1 << self.segment_log2, self.lanes, *model)

    def _check(
        self, payload: Bytes, lengths: NDArray[np.int64], counts: NDArray[np.int64], escapes: NDArray[np.int64]
    ) -> None:
        """Raise CoderError unless segments of these lengths can hold so many symbols, escaped ones among them."""
        if int(lengths.sum()) != payload.size or (lengths % 4).any():
            raise CoderError("a segment is no whole number of words")
        if (escapes > counts).any() or (lengths < 4 * (self.lanes + -(-escapes * self.width // 32))).any():
            raise CoderError("a segment cannot hold its states and the escaped symbols that the table announces")
        # To encode a symbol multiplies a state q f + r by 1 + q (2^p - f) / (q f + r) or more, where q >= 1 and r < f.
        growth = math.log2((1 + (1 << self.precision) / int(self.frequencies.max())) / 2)
        if (counts * growth > 8 * lengths).any():
            raise CoderError("a segment cannot hold as many symbols as it should")

    def _fill_escapes(self, data: Bytes, escapes: int, out: Symbols) -> None:
        from rdo_kernels.cpu import symbols as loops

        symbols = _unpack(data, self.width, escapes) + self.low
        if escapes and int(symbols.max()) > MAX_SYMBOL:
            raise CoderError("a symbol lies beyond +-2^30")
        found = int(loops.put_escaped(out, np.int32(ESCAPE), symbols.astype(np.int32)))
        if found != escapes:
            raise CoderError(f"the table announces {escapes} escaped symbols, the payload has {found}")


def _unpack(data: Bytes, width: int, count: int) -> NDArray[np.int64]:
    words = np.append(data.view("<u4"), [0, 0]).astype(np.uint64)
    if count * width % 32 and int(words[-3]) >> count * width % 32:
        raise CoderError("what fills the last word of the escaped symbols is not zero")
    positions = np.arange(count) * width
    pairs = words[positions >> 5] | words[(positions >> 5) + 1] << np.uint64(32)
    shifted: NDArray[np.uint64] = pairs >> (positions & 31).astype(np.uint64)
    return (shifted & np.uint64((1 << width) - 1)).astype(np.int64)
