"""Streams of format version 2, which are read for ever and not written: docs/coders.md describes them at its end.

The tables of rans and exp_golomb ended with an index of the segments; other streams were one piece.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Bytes, EntropyCoder, SegmentDecoder
from rdo.coders.exp_golomb import ExpGolomb
from rdo.coders.rans import RANS
from rdo.coders.rans_decoder import Single, Table
from rdo.coders.rans_table import read_explicit
from rdo.coders.segments import SIZES_LOG2, WHOLE, Segments, Stream
from rdo.coders.varint import Reader
from rdo.errors import CoderError


def stream_of_version_2(coder: EntropyCoder, table: Bytes, payload: Bytes, count: int) -> Stream:
    """What decodes ``count`` > 0 symbols.

    Raises:
        CoderError: the table is malformed, or its segments do not fill the payload.
    """
    if isinstance(coder, RANS):
        return _rans(table, payload, count)
    if isinstance(coder, ExpGolomb):
        return _exp_golomb(coder, table, payload, count)
    return one_piece(coder.decoder(table, count, WHOLE), payload, count)


def one_piece(decoder: SegmentDecoder, payload: Bytes, count: int) -> Stream:
    """The stream whose payload is one segment."""
    segments = Segments.of(np.array([payload.size]), payload.size, count, WHOLE)
    return Stream(decoder, segments, segments.fetch(payload))


def _rans(table: Bytes, payload: Bytes, count: int) -> Stream:
    reader = Reader(table)
    sizes: list[int] = []
    precision = reader.number()
    if precision == 0:
        return one_piece(Single.read(reader), payload, count)
    decoder = Table.read(reader, precision, lambda: _read_size(reader, sizes), read_explicit)
    lengths, escapes = _index(reader, count, sizes[0], escapes=decoder.width > 0)
    return _stream(decoder.with_escapes(escapes), lengths, payload, count, sizes[0])


def _exp_golomb(coder: ExpGolomb, table: Bytes, payload: Bytes, count: int) -> Stream:
    reader = Reader(table)
    sizes: list[int] = []
    decoder = coder.read_table(reader, lambda: _read_size(reader, sizes))
    lengths, _ = _index(reader, count, sizes[0], escapes=False)
    return _stream(decoder, lengths, payload, count, sizes[0])


def _read_size(reader: Reader, sizes: list[int]) -> int:
    size_log2 = reader.number()
    if size_log2 not in SIZES_LOG2:
        raise CoderError(f"segments of 2^{size_log2} symbols; 2^{SIZES_LOG2[0]} to 2^{SIZES_LOG2[-1]} are possible")
    sizes.append(size_log2)
    return size_log2


def _index(reader: Reader, count: int, size_log2: int, *, escapes: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lengths of the segments, and how many escaped symbols each has."""
    columns = reader.numbers(-(-count >> size_log2) * (1 + escapes)).reshape(-1, 1 + escapes)
    reader.end()
    lengths = columns[:, 0]
    if (lengths > 1 << 40).any():
        raise CoderError("a segment is longer than can be")
    return 4 * lengths, columns[:, 1] if escapes else columns[:0, 0]


def _stream(decoder: SegmentDecoder, lengths: NDArray[np.int64], payload: Bytes, count: int, size_log2: int) -> Stream:
    segments = Segments.of(lengths, payload.size, count, size_log2)
    return Stream(decoder, segments, segments.fetch(payload))
