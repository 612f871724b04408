"""Compact integers in tables: little-endian base-128 numbers, signed ones zig-zagged, ascending values as runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import MAX_SYMBOL, Bytes
from rdo.errors import CoderError

_MAX_VARINT_BYTES = 9


class Writer:
    """Collects numbers; :meth:`bytes` gives the table."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def number(self, value: int) -> None:
        """Append a number >= 0: seven bits a byte, least significant first, the top bit set on all but the last."""
        while value >= 0x80:
            self._buffer.append((value & 0x7F) | 0x80)
            value >>= 7
        self._buffer.append(value)

    def signed(self, value: int) -> None:
        """Append any integer, zig-zagged: 0, -1, 1, -2 become 0, 1, 2, 3."""
        self.number(2 * value if value >= 0 else -2 * value - 1)

    def numbers(self, values: NDArray[np.int64]) -> None:
        """Append numbers >= 0 without their count."""
        shifts = np.arange(0, max(1, int(values.max(initial=0)).bit_length()), 7)
        septets = values[:, None] >> shifts
        more = septets >> 7 > 0
        self._buffer += ((septets & 0x7F) | (more << 7)).astype(np.uint8)[(septets > 0) | (shifts == 0)].tobytes()

    def ascending(self, values: NDArray[np.int64]) -> None:
        """Append distinct ascending values as runs of consecutive ones: their number, the first value, then the length
        of each run and the gap (>= 2, less 2) to the next."""
        gaps = np.diff(values)
        breaks = np.flatnonzero(gaps > 1)
        if not len(values):
            self.number(0)
            return
        self.number(len(breaks) + 1)
        self.signed(int(values[0]))
        lengths = np.diff(breaks, prepend=-1, append=len(values) - 1) - 1
        self.numbers(np.append(lengths[:1], np.stack([gaps[breaks] - 2, lengths[1:]], axis=1)))

    def raw(self, data: Bytes) -> None:
        """Append bytes as they are."""
        self._buffer += data.tobytes()

    def bytes(self) -> Bytes:
        """The table so far."""
        return np.frombuffer(bytes(self._buffer), np.uint8)


class Reader:
    """Reads what :class:`Writer` wrote, trusting nothing.

    Raises:
        CoderError: from every method, on anything that a writer cannot have written.
    """

    def __init__(self, table: Bytes) -> None:
        self._data = table.tobytes()
        self._position = 0

    def number(self) -> int:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if self._position >= len(self._data):
                raise CoderError("the table is truncated")
            byte = self._data[self._position]
            self._position += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise CoderError("the table holds a number that is too long")

    def signed(self) -> int:
        value = self.number()
        return -(value + 1) // 2 if value & 1 else value // 2

    def numbers(self, count: int) -> NDArray[np.int64]:
        if count > self.left:
            raise CoderError(f"the table announces {count} numbers and has only {self.left} bytes left")
        return np.fromiter((self.number() for _ in range(count)), np.int64, count)

    def ascending(self, most: int) -> NDArray[np.int64]:
        runs = self.number()
        if runs > self.left:
            raise CoderError(f"the table announces {runs} runs of values and has only {self.left} bytes left")
        parts: list[NDArray[np.int64]] = []
        value, total = 0, 0
        for index in range(runs):
            value = self.signed() if index == 0 else value + self.number() + 2
            length = self.number() + 1
            total += length
            if total > most:
                raise CoderError(f"the table announces more than {most} distinct values")
            if not -MAX_SYMBOL <= value <= value + length - 1 <= MAX_SYMBOL:
                raise CoderError("the table holds a value beyond +-2^30")
            parts.append(np.arange(value, value + length, dtype=np.int64))
            value += length - 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def raw(self, count: int) -> Bytes:
        if count > self.left:
            raise CoderError(f"the table announces {count} bytes and has only {self.left} left")
        self._position += count
        return np.frombuffer(self._data[self._position - count : self._position], np.uint8)

    def rest(self) -> Bytes:
        """All bytes not read yet."""
        part = np.frombuffer(self._data[self._position :], np.uint8)
        self._position = len(self._data)
        return part

    def end(self) -> None:
        if self.left:
            raise CoderError(f"the table has {self.left} bytes too many")
