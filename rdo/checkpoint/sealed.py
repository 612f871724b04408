"""Where tensors are in a file of format version 3 or 4, and the checksums on the way: docs/format.md, "Entries"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rdo.checkpoint.container import CODES, SEAL, Bytes, Container, crc32c
from rdo.checkpoint.manifest import INDEX_BYTES, RAW_CHECKSUMS, RAW_PIECE, Record, entry_name
from rdo.checkpoint.scales import unpacked
from rdo.coders import EntropyCoder
from rdo.coders.segments import Segments, Stream
from rdo.errors import CoderError
from rdo.quantizers import row_length

Expected = dict[str, tuple[str, tuple[int, ...]]]


class SealedLayout:
    """Reads entries, and checks what it reads."""

    def __init__(self, container: Container, records: Mapping[str, Record]) -> None:
        self._container, self._records = container, records
        pieces = np.cumsum([0, *(record.pieces for record in records.values())])
        self._first_piece = dict(zip(records, pieces.tolist(), strict=False))
        self._pieces = int(pieces[-1])

    def extra_entries(self) -> Expected:
        """The entries that belong to no tensor alone."""
        extra: Expected = {SEAL: (CODES[torch.uint8], (36,))}
        if self._pieces:
            extra[RAW_CHECKSUMS] = CODES[torch.uint32], (self._pieces,)
        return extra

    def least_bytes(self, record: Record) -> int:
        """Of the stream of a coded tensor."""
        return record.head_bytes

    def stream(self, name: str, coder: EntropyCoder) -> tuple[Stream, NDArray[np.float32]]:
        """What decodes a coded tensor, and its steps."""
        record = self._records[name]
        entry = entry_name(name, record)
        head = self._container.read(entry, 0, record.head_bytes)
        if crc32c(head) != record.checksum:
            raise CoderError("wrong checksum of the table and the index")
        scales = head[record.table_bytes :][: record.scale_bytes].copy()
        if record.group.channels is None:
            steps = scales.view("<f4").astype(np.float32, copy=False)
        else:
            steps = unpacked(scales, record.steps)
        index = head[record.head_bytes - INDEX_BYTES * record.segments :].copy().view("<u4").reshape(-1, 2)
        length = self._container.length(entry) - record.head_bytes
        segments = Segments.of(index[:, 0].astype(np.int64), length, record.numel, record.segment_log2)
        checksums = index[:, 1].tolist()

        def fetch(first: int, last: int) -> Bytes:
            begin, *ends = (segments.offsets[first : last + 1] + record.head_bytes).tolist()
            data, done = self._container.read(entry, begin, ends[-1]), 0
            for number, end in enumerate(ends, first):
                if crc32c(data[done : end - begin]) != checksums[number]:
                    raise CoderError(f"wrong checksum of segment {number}")
                done = end - begin
            return data

        decoder = coder.decoder(head[: record.table_bytes], record.numel, record.segment_log2, row_length(record.size))
        return Stream(decoder, segments, fetch), steps

    def raw(self, name: str, begin: int, end: int) -> Iterator[tuple[int, Bytes]]:
        """Bytes ``begin`` to ``end`` of a raw tensor, in pieces: where each begins, and the piece."""
        entry = entry_name(name, self._records[name])
        length = self._container.length(entry)
        for number in range(begin // RAW_PIECE, -(-end // RAW_PIECE)):
            first, last = number * RAW_PIECE, min((number + 1) * RAW_PIECE, length)
            piece, place = self._container.read(entry, first, last), 4 * (self._first_piece[name] + number)
            [checksum] = self._container.read(RAW_CHECKSUMS, place, place + 4).view("<u4")
            if crc32c(piece) != checksum:
                raise CoderError(f"wrong checksum of bytes {first} to {last}")
            low, high = max(begin, first), min(end, last)
            yield low, piece[low - first : high - first]
