"""Streams of format version 1, which are read for ever and not written: docs/coders.md describes them at its end.

A stream was one piece, and the lanes of rans depended on the number of symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Bytes, EntropyCoder, SegmentDecoder, Symbols
from rdo.coders.exp_golomb import MAX_K, ExpGolomb, ranked_symbols, symbols_of
from rdo.coders.fixed_length import FixedLength
from rdo.coders.rans import RANS
from rdo.coders.rans_decoder import ESCAPE, Single
from rdo.coders.rans_model import PRECISIONS
from rdo.coders.rans_table import read_explicit
from rdo.coders.segments import WHOLE, Stream
from rdo.coders.varint import Reader
from rdo.coders.version2 import one_piece
from rdo.errors import CoderError


def stream_of_version_1(coder: EntropyCoder, table: Bytes, payload: Bytes, count: int) -> Stream:
    """What decodes ``count`` > 0 symbols.

    Raises:
        CoderError: the table is malformed.
    """
    if isinstance(coder, RANS):
        decoder = _rans(table, count)
    elif isinstance(coder, ExpGolomb):
        decoder = _exp_golomb(coder, table)
    else:
        decoder = coder.decoder(table, count, WHOLE)
    return one_piece(decoder, payload, count)


def _exp_golomb(coder: ExpGolomb, table: Bytes) -> SegmentDecoder:
    reader = Reader(table)
    k = reader.number()
    ranked = ranked_symbols(reader) if coder.mapping == "rank" else None
    reader.end()
    if k > MAX_K:
        raise CoderError(f"the table asks for order {k}; the largest is {MAX_K}")
    return _ExpGolomb(k, ranked)


@dataclass(frozen=True)
class _ExpGolomb:
    k: int
    ranked: Symbols | None

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        from rdo_kernels.cpu import prefix

        total_bits = 8 * payload.size
        if out.size > total_bits:
            raise CoderError(f"{out.size} symbols cannot fit into a payload of {payload.size} bytes")
        numbers = out.view(np.uint32)
        used = prefix.decode_exp_golomb(prefix.padded(payload), total_bits, self.k, numbers)
        if used < 0:
            raise CoderError("the payload is truncated or damaged")
        if total_bits - used >= 8 or (used % 8 and int(payload[-1]) & ((1 << (8 - used % 8)) - 1)):
            raise CoderError("the payload goes on after the last symbol")
        out[:] = symbols_of(numbers, self.ranked)


def _rans(table: Bytes, count: int) -> SegmentDecoder:
    reader = Reader(table)
    precision = reader.number()
    if precision == 0:
        return Single.read(reader)
    if precision not in PRECISIONS:
        raise CoderError(f"the table has {precision} bits of precision; 8 to 16 are possible")
    escapes = reader.number()
    values, frequencies = read_explicit(reader, precision, escapes=escapes > 0)
    if escapes > count:
        raise CoderError(f"the table announces {escapes} escaped symbols of {count}")
    entries = np.append(values, ESCAPE) if escapes else values
    rest = reader.rest()
    if rest.size and not escapes:
        raise CoderError(f"the table has {rest.size} bytes too many")
    return _Rans(precision, entries.astype(np.int32), frequencies, escapes, rest)


@dataclass(frozen=True)
class _Rans:
    """``escaped`` is the table, in fixed_length, of the ``escapes`` escaped symbols that end the payload."""

    precision: int
    values: Symbols
    frequencies: NDArray[np.int64]
    escapes: int
    escaped: Bytes

    def decode(self, payload: Bytes, lengths: NDArray[np.int64], first: int, out: Symbols) -> None:
        from rdo_kernels.cpu import rans_loops

        cut = payload.size - self._escaped_bytes()
        lanes = 1 if out.size < 4096 else 8
        if cut < 4 * lanes or cut % 2:
            raise CoderError(f"a payload of {payload.size} bytes cannot hold {lanes} states and whole words")
        states = payload[: 4 * lanes].copy().view("<u4").astype(np.uint32)[None]
        words = payload[4 * lanes : cut].copy().view("<u2").astype(np.uint16, copy=False)
        ends = np.array([words.size])
        model = self.values, self.frequencies, self.precision
        used = rans_loops.decode(words, np.zeros(1, np.int64), ends, states, *model, out.size, out)
        if (used != ends).any() or (states != rans_loops.LOW).any():
            raise CoderError("the payload is truncated or damaged")
        if self.escapes:
            holes = np.flatnonzero(out == ESCAPE)
            if len(holes) != self.escapes:
                raise CoderError(f"the table announces {self.escapes} escaped symbols, the payload has {len(holes)}")
            part = payload[cut:]
            symbols = np.empty(self.escapes, np.int32)
            decoder = FixedLength().decoder(self.escaped, self.escapes, WHOLE)
            decoder.decode(part, np.array([part.size]), 0, symbols)
            out[holes] = symbols

    def _escaped_bytes(self) -> int:
        if not self.escapes:
            return 0
        header = Reader(self.escaped)
        header.signed()
        return -(-self.escapes * min(header.number(), 64) // 8)
