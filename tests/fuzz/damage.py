"""What a fuzz target is, and the damage that is done to bytes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

_BYTES = (0, 1, 2, 0x7F, 0x80, 0xFF, 8, 16, 31, 32, 33, 64)
_PIECES = (
    b"\xff" * 8 + b"\x7f",
    b"\x80\x80\x80\x80\x10",
    b"\xff\xff\xff\xff\x0f",
    b"\0\0\0\0",
    b"\0\0\1\0",
    b"\x80" * 9,
)


class Damage(ABC):
    """A target: it makes its own seeds, damages them, and executes what comes of it."""

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Inputs that are well formed, most of them; the same every time."""

    @abstractmethod
    def mutate(self, chance: random.Random, seed: bytes, other: bytes) -> bytes:
        """An input near ``seed``, a part of ``other`` in it perhaps."""

    @abstractmethod
    def execute(self, data: bytes) -> bool:
        """Read an input: False if a typed error refused it. Any other exception is a finding."""

    @staticmethod
    def edit(chance: random.Random, data: bytearray, other: bytes) -> None:
        """Damage some bytes in one place."""
        size = len(data)
        # Half of the damage goes to the first 64 bytes: what a reader goes by is there.
        at = int(chance.random() * (min(size, 64) if chance.random() < 0.5 else size))
        kind = int(chance.random() * 10)
        if not size:
            data += other
        elif kind < 3:
            data[at] ^= 1 << int(chance.random() * 8)
        elif kind < 5:
            data[at] = chance.choice(_BYTES)
        elif kind == 5:
            data[at] = (data[at] + chance.choice((-1, 1))) & 255
        elif kind == 6:
            data[at:at] = chance.choice(_PIECES)
        elif kind == 7:
            del data[at : at + 1 + int(chance.random() * 8)]
        elif kind == 8:
            start = int(chance.random() * (len(other) + 1))
            length = int(chance.random() * 32)
            data[at : at + length] = other[start : start + length]
        else:
            del data[at:]
