"""Symbols as bytes for compressors of bytes: a byte each where they fit."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdo.coders.base import Symbols
from rdo_harness.coder_peers.base import LENGTH_BYTES, PER_TENSOR, WHOLE, Clock, Matrix, Peer, Trip, check_same

_ESCAPE = -128
_MOST_ESCAPES = 1 / 64
_TYPES = {1: np.int8, 2: np.int16, 4: np.int32}
_HEAD = struct.Struct("<bI")
INT8, ESCAPED, INT16, INT32 = "int8", "int8, escapes as int32", "int16", "int32"
_CODES = (INT8, ESCAPED, INT16, INT32)


def narrow(symbols: Symbols) -> tuple[bytes, str]:
    """Little-endian bytes of int32 symbols with a head of five bytes, and the name of their form.

    int8 where they fit; where all but one in 64 fit, int8 with -128 for the others, which follow as int32 (an
    occasional outlier must not double the size); else int16, else int32.
    """
    low, high = (int(symbols.min()), int(symbols.max())) if symbols.size else (0, 0)
    escaped = np.empty(0, np.int32)
    if low >= -128 and high <= 127:
        form, data = INT8, symbols.astype(np.int8)
    else:
        outside = (symbols <= _ESCAPE) | (symbols > 127)
        if int(outside.sum()) <= symbols.size * _MOST_ESCAPES:
            escaped = symbols[outside]
            form, data = ESCAPED, np.where(outside, np.int32(_ESCAPE), symbols).astype(np.int8)
        elif low >= -32768 and high <= 32767:
            form, data = INT16, symbols.astype("<i2")
        else:
            form, data = INT32, symbols.astype("<i4")
    return _HEAD.pack(_CODES.index(form), escaped.size) + data.tobytes() + escaped.astype("<i4").tobytes(), form


def widen(data: memoryview, count: int) -> tuple[Symbols, int]:
    """The ``count`` symbols at the beginning of what :func:`narrow` made, and how many bytes they took."""
    code, escapes = _HEAD.unpack_from(data)
    width = {INT8: 1, ESCAPED: 1, INT16: 2, INT32: 4}[_CODES[code]]
    middle = _HEAD.size + width * count
    end = middle + 4 * escapes
    symbols = np.frombuffer(data[_HEAD.size : middle], _TYPES[width]).astype(np.int32)
    if _CODES[code] == ESCAPED:
        symbols[symbols == _ESCAPE] = np.frombuffer(data[middle:end], "<i4")
    return symbols, end


@dataclass(frozen=True)
class ByteCompressor(Peer):
    """A compressor of bytes. Making bytes of int32 symbols and back is in its times: whoever uses it pays for that."""

    packings = (PER_TENSOR, WHOLE)

    @abstractmethod
    def compress(self, data: bytes, threads: int) -> bytes:
        """Compress with this many threads, if it has threads."""

    @abstractmethod
    def decompress(self, data: bytes, size: int) -> bytes:
        """The ``size`` bytes back."""

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        groups = [list(matrices)] if packing == WHOLE else [[matrix] for matrix in matrices]
        encoding, decoding = Clock(), Clock()
        forms: Counter[str] = Counter()
        decoded: list[Symbols] = []
        nbytes = 0
        for group in groups:
            with encoding.running():
                pieces = [narrow(matrix.symbols) for matrix in group]
                joined = b"".join(piece for piece, _ in pieces)
                stream = self.compress(joined, threads)
            forms.update(form for _, form in pieces)
            nbytes += len(stream) + LENGTH_BYTES
            with decoding.running():
                rest = memoryview(self.decompress(stream, len(joined)))
                for matrix in group:
                    symbols, used = widen(rest, matrix.symbols.size)
                    decoded.append(symbols)
                    rest = rest[used:]
        check_same(self.label, matrices, decoded)
        shown = ", ".join(f"{form} x {count}" if len(forms) > 1 else form for form, count in forms.most_common())
        return Trip(nbytes, f"{packing}: {shown}", encoding, decoding)
