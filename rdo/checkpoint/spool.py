"""A place for bitstreams until the header, which says how long they are, has been written before them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from rdo.checkpoint.container import Bytes
from rdo.files import explain_full_disk

_IN_MEMORY = 1 << 26
_PIECE = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where something is in a spool, in bytes."""

    offset: int
    length: int


class Spool:
    """Keeps what is appended, in memory while it is little, then in a file without a name that vanishes with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(directory))  # noqa: SIM115
        self._lock, self._end = threading.Lock(), 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, parts: Sequence[Bytes]) -> Place:
        """Keep some bytes, one part after another; from any thread.

        Raises:
            CheckpointError: the disk is full.
        """
        with self._lock, explain_full_disk(self._directory):
            place = Place(self._end, sum(part.nbytes for part in parts))
            self._file.seek(self._end)
            for part in parts:
                self._file.write(part.data)
            self._end += place.length
        return place

    def read(self, place: Place) -> Iterator[Bytes]:
        """What was kept there, piece by piece; after the last append."""
        self._file.seek(place.offset)
        for begin in range(0, place.length, _PIECE):
            yield np.frombuffer(self._file.read(min(_PIECE, place.length - begin)), np.uint8)
