"""The bitstreams of rans and exp_golomb in checkpoints of format version 1, which are read for ever and not written.

docs/coders.md describes them at its end. A stream was one piece, and lanes depended on the number of symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Bitstream, Bytes, Decoder, EntropyCoder, Symbols, check_count
from rdo.coders.exp_golomb import MAX_K, ExpGolomb, ranked_symbols, symbols_of
from rdo.coders.fixed_length import FixedLength
from rdo.coders.rans import ESCAPE, RANS, check_frequencies, decode_single, slot_steps
from rdo.coders.rans_model import PRECISIONS
from rdo.coders.varint import Reader
from rdo.errors import CoderError


def decoder_of_version_1(coder: EntropyCoder) -> Decoder:
    """What decoded the streams of this coder in version 1; the coder itself if they are what they were."""
    if isinstance(coder, RANS):
        return _RANS()
    if isinstance(coder, ExpGolomb):
        return _ExpGolomb(coder.mapping)
    return coder


@dataclass(frozen=True)
class _ExpGolomb:
    mapping: str

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        check_count(count)
        from rdo_kernels.cpu import prefix

        reader = Reader(stream.table)
        k = reader.number()
        ranked = ranked_symbols(reader) if self.mapping == "rank" else None
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
        return symbols_of(numbers, ranked)


@dataclass(frozen=True)
class _RANS:
    def decode(self, stream: Bitstream, count: int) -> Symbols:
        check_count(count)
        if count == 0 and stream.nbytes == 0:
            return np.empty(0, np.int32)
        reader = Reader(stream.table)
        precision = reader.number()
        if precision == 0:
            return decode_single(reader, stream.payload, count)
        if precision not in PRECISIONS:
            raise CoderError(f"the table has {precision} bits of precision; 8 to 16 are possible")
        escapes = reader.number()
        values = reader.ascending(1 << precision)
        frequencies = reader.numbers(len(values) + (escapes > 0))
        check_frequencies(frequencies, precision, count, stream.payload)
        if escapes > count:
            raise CoderError(f"the table announces {escapes} escaped symbols of {count}")
        escaped, payload = _decode_escaped(reader, stream.payload, escapes)
        entries = np.append(values, ESCAPE) if escapes else values
        symbols = _decode_payload(payload, entries, frequencies, precision, count)
        if escapes:
            holes = np.flatnonzero(symbols == ESCAPE)
            if len(holes) != escapes:
                raise CoderError(f"the table announces {escapes} escaped symbols, the payload has {len(holes)}")
            symbols[holes] = escaped
        return symbols


def _decode_escaped(reader: Reader, payload: Bytes, escapes: int) -> tuple[Symbols, Bytes]:
    """Split the escaped symbols, which end the payload, from the rest of it."""
    if not escapes:
        reader.end()
        return np.empty(0, np.int32), payload
    table = reader.rest()
    header = Reader(table)
    header.signed()
    length = -(-escapes * min(header.number(), 64) // 8)
    if length > payload.size:
        raise CoderError("the payload is too short for its escaped symbols")
    cut = payload.size - length
    return FixedLength().decode(Bitstream(table, payload[cut:]), escapes), payload[:cut]


def _decode_payload(
    payload: Bytes, values: NDArray[np.int64], frequencies: NDArray[np.int64], precision: int, count: int
) -> Symbols:
    from rdo_kernels.cpu import rans

    lanes = 1 if count < 4096 else 8
    if payload.size < 4 * lanes or payload.size % 2:
        raise CoderError(f"a payload of {payload.size} bytes cannot hold {lanes} states and whole words")
    states = payload[: 4 * lanes].copy().view("<u4").astype(np.uint32)
    words = payload[4 * lanes :].copy().view("<u2").astype(np.uint16, copy=False)
    symbols = np.empty(count, np.int32)
    slots = np.repeat(values.astype(np.int32), frequencies)
    used = rans.decode(words, states, slots, slot_steps(frequencies), precision, symbols)
    if used != words.size or (states != rans.LOW).any():
        raise CoderError("the payload is truncated or damaged")
    return symbols
