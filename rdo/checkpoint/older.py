"""Where tensors are in files of the format versions 1 and 2, which are read for ever and not written."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from rdo.checkpoint.container import CODES, Bytes, Container
from rdo.checkpoint.manifest import OLD_STEPS, Record, entry_name
from rdo.checkpoint.sealed import Expected
from rdo.coders import EntropyCoder
from rdo.coders.segments import Stream
from rdo.coders.version1 import stream_of_version_1
from rdo.coders.version2 import stream_of_version_2
from rdo.errors import CoderError


class OlderLayout:
    """As :class:`rdo.checkpoint.sealed.SealedLayout`; one checksum covers a whole tensor."""

    def __init__(self, container: Container, records: Mapping[str, Record], version: int) -> None:
        self._container, self._records, self._version = container, records, version
        *firsts, self._steps = accumulate((record.steps for record in records.values()), initial=0)
        self._first_step = dict(zip(records, firsts, strict=True))

    def extra_entries(self) -> Expected:
        """The entries that belong to no tensor alone."""
        return {OLD_STEPS: (CODES[torch.float32], (self._steps,))} if self._steps else {}

    def least_bytes(self, record: Record) -> int:
        """Of the stream of a coded tensor."""
        return record.table_bytes

    def stream(self, name: str, coder: EntropyCoder) -> tuple[Stream, NDArray[np.float32]]:
        """What decodes a coded tensor, and its steps."""
        record, first = self._records[name], 4 * self._first_step[name]
        steps = self._container.read(OLD_STEPS, first, first + 4 * record.steps)
        data = self._read(name, steps)
        open_stream = stream_of_version_1 if self._version == 1 else stream_of_version_2
        stream = open_stream(coder, data[: record.table_bytes], data[record.table_bytes :], record.numel)
        return stream, steps.view("<f4").astype(np.float32, copy=False)

    def raw(self, name: str, begin: int, end: int) -> Iterator[tuple[int, Bytes]]:
        """Bytes ``begin`` to ``end`` of a raw tensor, in pieces: where each begins, and the piece."""
        yield begin, self._read(name)[begin:end]

    def _read(self, name: str, *more: Bytes) -> Bytes:
        entry = entry_name(name, self._records[name])
        data = self._container.read(entry, 0, self._container.length(entry))
        checksum = 0
        for part in (data, *more):
            checksum = zlib.crc32(part.data, checksum)
        if checksum != self._records[name].checksum:
            raise CoderError("wrong checksum: the file is damaged; fetch or write it again")
        return data
