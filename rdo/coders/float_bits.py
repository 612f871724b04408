"""The bits of floating-point numbers, kept exactly: exponents are worth coding, mantissas hardly ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rdo.coders.base import CODERS, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.rans import RANS, encode_segments
from rdo.coders.rans_model import best_model
from rdo.coders.segments import Layout, OneByOne, bounds, join
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError, ConfigError

_SEGMENT_SIZE_LOG2 = 20
_WORTHWHILE = 0.995
"""Planes that coding would not make smaller than this share are stored: that is many times as fast."""


@CODERS.register("float_bits")
@dataclass(frozen=True)
class FloatBits(EntropyCoder):
    """Byte planes of the bits of floating-point numbers, each stored or coded by rANS.

    A symbol is the bits of a number as an integer (of 32 bits: as int32, which may be any). Rotated left by one bit,
    the sign comes last and the exponent of float32 and bfloat16 is exactly the first byte.

    Args:
        width: bits of a number: 8, 16 or 32.
    """

    name: ClassVar[str] = "float_bits"
    width: int = 32

    def __post_init__(self) -> None:
        if self.width not in (8, 16, 32):
            raise ConfigError(f"width must be 8, 16 or 32 bits, got {self.width}")

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        if not symbols.size:
            return join(np.empty(0, np.uint8), [], _SEGMENT_SIZE_LOG2)
        if self.width < 32 and not 0 <= int(symbols.min()) <= int(symbols.max()) < 1 << self.width:
            raise CoderError(f"these are not the bits of numbers of {self.width} bits")
        from rdo_kernels.cpu import byte_planes

        layout, table = Layout.of(symbols.size, _SEGMENT_SIZE_LOG2), Writer()
        spans = bounds(symbols.size, _SEGMENT_SIZE_LOG2)
        heads: list[list[Bytes]] = [[] for _ in spans]
        bodies: list[list[Bytes]] = [[] for _ in spans]
        for plane in reversed(range(self.width // 8)):
            values = np.empty(symbols.size, np.int32)
            byte_planes.take(symbols, self.width, plane, values)
            stream = _coded(values, layout)
            table.number(0 if stream is None else stream.table.size)
            if stream is None:
                for body, span in zip(bodies, spans, strict=True):
                    body.append(values[slice(*span)].astype(np.uint8))
                continue
            table.raw(stream.table)
            ends = np.cumsum(stream.lengths)
            for head, body, length, end in zip(heads, bodies, stream.lengths, ends, strict=True):
                head.append(np.array([length], "<u4").view(np.uint8))
                body.append(stream.payload[end - length : end])
        segments = [np.concatenate([*head, *body]) for head, body in zip(heads, bodies, strict=True)]
        return join(table.bytes(), segments, _SEGMENT_SIZE_LOG2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        planes: list[SegmentDecoder | None] = []
        for _ in range(self.width // 8):
            length = reader.number()
            planes.append(RANS().decoder(reader.raw(length), count, segment_log2) if length else None)
        reader.end()
        return _Decoder(segment_log2, self.width, planes)

    def size_bytes(self, histogram: Histogram) -> int:
        """Within 16 bytes and 0.1 %, as that of rANS."""
        if not len(histogram.values):
            return 0
        from rdo_kernels.cpu import byte_planes

        symbols, total = histogram.values.astype(np.int32), 0
        for plane in range(self.width // 8):
            values = np.empty(symbols.size, np.int32)
            byte_planes.take(symbols, self.width, plane, values)
            counts = np.bincount(values, weights=histogram.counts, minlength=256).astype(np.int64)
            present = np.flatnonzero(counts)
            coded = RANS().size_bytes(Histogram(present, counts[present]))
            segments = -(-histogram.count >> _SEGMENT_SIZE_LOG2)
            worthwhile = coded < _WORTHWHILE * histogram.count
            total += 1 + (coded + 4 * segments if worthwhile else histogram.count)
        return total


def _coded(values: Symbols, layout: Layout) -> Bitstream | None:
    """A plane under rANS, or None if that is not worthwhile."""
    histogram = Histogram.of(values)
    if RANS().size_bytes(histogram) >= _WORTHWHILE * values.size:
        return None
    if len(histogram.values) > 1:
        return encode_segments(values, best_model(histogram), layout)
    table = RANS().encode(values[:1]).table
    return join(table, [np.empty(0, np.uint8)] * layout.count(values.size), layout.size_log2)


@dataclass(frozen=True)
class _Decoder(OneByOne):
    width: int
    planes: list[SegmentDecoder | None]
    """From the highest byte to the lowest; None: stored."""

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        from rdo_kernels.cpu import byte_planes

        coded = sum(plane is not None for plane in self.planes)
        if data.size < 4 * coded:
            raise CoderError(f"a segment of {data.size} bytes cannot hold the lengths of its planes")
        lengths = iter(data[: 4 * coded].copy().view("<u4").tolist())
        sizes = [out.size if plane is None else next(lengths) for plane in self.planes]
        if 4 * coded + sum(sizes) != data.size:
            raise CoderError(f"the planes of a segment do not fill its {data.size} bytes")
        values = np.empty(out.size, np.int32)
        out[:] = 0
        begin = 4 * coded
        for plane, size in zip(self.planes, sizes, strict=True):
            part = data[begin : begin + size]
            begin += size
            if plane is None:
                byte_planes.put_stored(part, out)
                continue
            plane.decode(part.copy(), np.array([size]), number, values)
            if not byte_planes.put(values, out):
                raise CoderError("a byte of a plane is not between 0 and 255")
        byte_planes.rotate_back(out, self.width)
