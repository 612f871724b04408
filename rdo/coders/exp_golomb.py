"""Exp-Golomb codes (BackSlash, Algorithm 2 and Table 2; Wen & Villasenor 1999)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, MAX_SYMBOL, Bitstream, EntropyCoder, Histogram, Symbols, check_count
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError, ConfigError

MAX_K = 15


@CODERS.register("exp_golomb")
@dataclass(frozen=True)
class ExpGolomb(EntropyCoder):
    """Exp-Golomb of order k: ``EGk(n) = EG0(n >> k)`` followed by the k low bits of n.

    Args:
        k: order, 0 to 15; None takes the order that gives the fewest bytes.
        mapping: how symbols become numbers >= 0. ``"rank"``: the place in the order of falling frequency, the paper's
            Algorithm 2 (equal frequencies: the smaller magnitude first, then the negative one); the order is the
            table. ``"zigzag"``: 0, -1, 1, -2 become 0, 1, 2, 3, without a table.
    """

    name: ClassVar[str] = "exp_golomb"
    k: int | None = 0
    mapping: str = "rank"

    def __post_init__(self) -> None:
        if self.k is not None and not (isinstance(self.k, int) and 0 <= self.k <= MAX_K):
            raise ConfigError(f"k must be between 0 and {MAX_K}, or None for the best, got {self.k}")
        if self.mapping not in ("rank", "zigzag"):
            raise ConfigError(f"mapping must be 'rank' or 'zigzag', got {self.mapping!r}")

    def encode(self, symbols: Symbols) -> Bitstream:
        from rdo_kernels.cpu import prefix

        histogram = Histogram.of(symbols)
        numbers = self._numbers(histogram)
        k = self._order(histogram, numbers)
        payload = np.zeros(-(-_payload_bits(histogram, numbers, k) // 8), np.uint8)
        prefix.encode_exp_golomb(numbers[histogram.indices_of(symbols)], k, payload)
        return Bitstream(self._table(histogram, numbers, k), payload)

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        check_count(count)
        from rdo_kernels.cpu import prefix

        reader = Reader(stream.table)
        k = reader.number()
        values = reader.numbers(reader.number()) if self.mapping == "rank" else np.empty(0, np.int64)
        reader.end()
        if k > MAX_K:
            raise CoderError(f"the table asks for order {k}; the largest is {MAX_K}")
        total_bits = 8 * stream.payload.size
        if count > total_bits:
            raise CoderError(f"{count} symbols cannot fit into a payload of {stream.payload.size} bytes")
        numbers = np.zeros(count, np.uint32)
        used = prefix.decode_exp_golomb(prefix.padded(stream.payload), total_bits, k, numbers)
        if used < 0:
            raise CoderError("the payload is truncated or damaged")
        if total_bits - used >= 8 or (used % 8 and int(stream.payload[-1]) & ((1 << (8 - used % 8)) - 1)):
            raise CoderError("the payload goes on after the last symbol")
        if self.mapping == "rank":
            if count and int(numbers.max()) >= len(values):
                raise CoderError("the payload holds a rank that the table does not")
            return _zigzag_inverse(values)[numbers].astype(np.int32)
        symbols = _zigzag_inverse(numbers.astype(np.int64))
        if count and int(np.abs(symbols).max()) > MAX_SYMBOL:
            raise CoderError("a symbol lies beyond +-2^30")
        return symbols.astype(np.int32)

    def size_bytes(self, histogram: Histogram) -> int:
        """Exact."""
        numbers = self._numbers(histogram)
        k = self._order(histogram, numbers)
        return int(self._table(histogram, numbers, k).size) - (-_payload_bits(histogram, numbers, k) // 8)

    def _numbers(self, histogram: Histogram) -> NDArray[np.uint32]:
        """The number coded for each distinct symbol."""
        zigzag = _zigzag(histogram.values)
        if self.mapping == "zigzag":
            return zigzag.astype(np.uint32)
        numbers = np.empty(len(zigzag), np.uint32)
        numbers[np.lexsort((zigzag, -histogram.counts))] = np.arange(len(zigzag), dtype=np.uint32)
        return numbers

    def _order(self, histogram: Histogram, numbers: NDArray[np.uint32]) -> int:
        if self.k is not None:
            return self.k
        return min(range(MAX_K + 1), key=lambda k: _payload_bits(histogram, numbers, k))

    def _table(self, histogram: Histogram, numbers: NDArray[np.uint32], k: int) -> NDArray[np.uint8]:
        table = Writer()
        table.number(k)
        if self.mapping == "rank":
            table.number(len(numbers))
            table.numbers(_zigzag(histogram.values)[np.argsort(numbers)])
        return table.bytes()


def _payload_bits(histogram: Histogram, numbers: NDArray[np.uint32], k: int) -> int:
    high = (numbers.astype(np.int64) >> k) + 1
    # frexp's exponent of an integer is its number of bits.
    lengths = 2 * np.frexp(high.astype(np.float64))[1].astype(np.int64) - 1 + k
    return int((histogram.counts * lengths).sum())


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _zigzag_inverse(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(numbers & 1, -((numbers + 1) >> 1), numbers >> 1)
