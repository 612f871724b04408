"""Compact integers in tables: little-endian base-128 numbers, signed ones zig-zagged, ascending values as runs."""

from __future__ import annotations

from collections.abc import Iterable

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

    def numbers(self, values: Iterable[int]) -> None:
        """Append numbers >= 0 without their count."""
        for value in values:
            self.number(int(value))

    def ascending(self, values: NDArray[np.int64]) -> None:
        """Append distinct ascending values as runs of consecutive ones: their number, the first value, then the length
        of each run and the gap (>= 2, less 2) to the next."""
        breaks = np.flatnonzero(np.diff(values) > 1)
        starts = np.concatenate([[0], breaks + 1]) if len(values) else np.empty(0, np.int64)
        ends = np.concatenate([breaks, [len(values) - 1]]) if len(values) else np.empty(0, np.int64)
        self.number(len(starts))
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if index == 0:
                self.signed(int(values[0]))
            else:
                self.number(int(values[start] - values[ends[index - 1]]) - 2)
            self.number(int(end - start))

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

    def rest(self) -> Bytes:
        """All bytes not read yet."""
        part = np.frombuffer(self._data[self._position :], np.uint8)
        self._position = len(self._data)
        return part

    def end(self) -> None:
        if self.left:
            raise CoderError(f"the table has {self.left} bytes too many")
