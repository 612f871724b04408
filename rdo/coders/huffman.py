"""Canonical Huffman code over the distinct symbols of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, Bitstream, Bytes, EntropyCoder, Histogram, SegmentDecoder, Symbols
from rdo.coders.segments import OneByOne, Places, bounds, join
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_MAX_LENGTH = 56
_MAX_ALPHABET = 1 << 26
_SEGMENT_SIZE_LOG2 = 20
_PADDING_BYTES = 7 / 16
"""What fills the last byte of a segment, on average."""


@CODERS.register("huffman")
@dataclass(frozen=True)
class Huffman(EntropyCoder):
    """Huffman: whole-bit code words of least total length. The table is the distinct symbols and their lengths."""

    name: ClassVar[str] = "huffman"

    def encode(self, symbols: Symbols, row_length: int = 1) -> Bitstream:
        from rdo_kernels.cpu import prefix, threads

        histogram = Histogram.of(symbols)
        lengths = _lengths(histogram)
        table, spans = _table(histogram, lengths), bounds(symbols.size, _SEGMENT_SIZE_LOG2)
        if len(lengths) < 2:
            return join(table, [np.empty(0, np.uint8) for _ in spans], _SEGMENT_SIZE_LOG2)
        codes, places = _codes(lengths), Places(histogram.values)

        def encode(span: tuple[int, int]) -> Bytes:
            indices = places.of(symbols[slice(*span)])
            data = np.zeros(-(-int(lengths[indices].sum()) // 8), np.uint8)
            prefix.encode_table(indices, codes, lengths, data)
            return data

        return join(table, threads.share(encode, spans), _SEGMENT_SIZE_LOG2)

    def decoder(self, table: Bytes, count: int, segment_log2: int, row_length: int = 1) -> SegmentDecoder:
        reader = Reader(table)
        # Each of several values has a length behind it: fewer bytes than values are forged, and cost no memory.
        values = reader.ascending(min(_MAX_ALPHABET, max(1, reader.left)))
        lengths = reader.numbers(len(values)) if len(values) > 1 else np.zeros(len(values), np.int64)
        reader.end()
        if not len(values):
            raise CoderError(f"{count} symbols are announced, and the table has none")
        return _Decoder(segment_log2, values, _Code.of(lengths) if len(values) > 1 else None)

    def size_bytes(self, histogram: Histogram) -> int:
        """Exact for one segment, else within a byte for each: what fills its last byte depends on the order."""
        lengths = _lengths(histogram)
        table = int(_table(histogram, lengths).size)
        bits = int((histogram.counts * lengths).sum()) if len(lengths) > 1 else 0
        segments = -(-histogram.count >> _SEGMENT_SIZE_LOG2)
        return table + (-(-bits // 8) if segments < 2 else int(bits / 8 + segments * _PADDING_BYTES))


@dataclass(frozen=True)
class _Decoder(OneByOne):
    values: NDArray[np.int64]
    code: _Code | None

    def decode_segment(self, data: Bytes, number: int, out: Symbols) -> None:
        if self.code is not None:
            out[:] = self.values[self.code.decode(data, out.size)]
        elif data.size:
            raise CoderError("the payload of a single repeated symbol must be empty")
        else:
            out[:] = self.values[0]


def _lengths(histogram: Histogram) -> NDArray[np.int64]:
    """Code length of each distinct symbol; zeros when there are fewer than two."""
    size = len(histogram.counts)
    lengths = np.zeros(size, np.int64)
    if size > 1:
        from rdo_kernels.cpu import prefix

        order = np.argsort(histogram.counts, kind="stable")
        lengths[order] = prefix.huffman_lengths(histogram.counts[order])
        if int(lengths.max()) > _MAX_LENGTH:
            raise CoderError(f"a Huffman code of {int(lengths.max())} bits is too long; use the coder 'rans'")
    return lengths


def _table(histogram: Histogram, lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    table = Writer()
    if len(lengths):
        table.ascending(histogram.values)
    if len(lengths) > 1:
        table.numbers(lengths)
    return table.bytes()


def _canonical(
    lengths: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order of the symbols by (length, value); per length the first code, its place in the order, and how many."""
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=_MAX_LENGTH + 2)
    first_code = np.zeros(len(counts), np.int64)
    first_index = np.zeros(len(counts), np.int64)
    for length in range(1, len(counts)):
        first_code[length] = (first_code[length - 1] + counts[length - 1]) << 1 if length > 1 else 0
        first_index[length] = first_index[length - 1] + counts[length - 1]
    return order, first_code, first_index, counts


def _codes(lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    order, first_code, first_index, _ = _canonical(lengths)
    codes = np.empty(len(lengths), np.int64)
    codes[order] = first_code[lengths[order]] + np.arange(len(lengths)) - first_index[lengths[order]]
    return codes.astype(np.uint64)


@dataclass(frozen=True)
class _Code:
    """A complete prefix code: per length the first code, its place in the order, and how many there are."""

    lookup: NDArray[np.uint32]
    first_code: NDArray[np.int64]
    first_index: NDArray[np.int64]
    counts: NDArray[np.int64]
    order: NDArray[np.uint32]
    longest: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> _Code:
        """The canonical code with these lengths, [K >= 2].

        Raises:
            CoderError: there is none.
        """
        from rdo_kernels.cpu.prefix import LOOKUP_BITS

        if int(lengths.min()) < 1 or int(lengths.max()) > _MAX_LENGTH:
            raise CoderError(f"the table holds a code length outside 1..{_MAX_LENGTH}")
        shares = (int(number) << (_MAX_LENGTH - length) for length, number in enumerate(np.bincount(lengths)))
        if sum(shares) != 1 << _MAX_LENGTH:
            raise CoderError("the code lengths of the table are not those of a complete prefix code")
        order, first_code, first_index, counts = _canonical(lengths)
        short = order[lengths[order] <= LOOKUP_BITS]
        # Canonical codes ascend, so the short ones fill the look-up table from its start.
        entries = (short.astype(np.uint32) << np.uint32(6)) | lengths[short].astype(np.uint32)
        lookup = np.zeros(1 << LOOKUP_BITS, np.uint32)
        filled = np.repeat(entries, 1 << (LOOKUP_BITS - lengths[short]))
        lookup[: len(filled)] = filled
        return cls(lookup, first_code, first_index, counts, order.astype(np.uint32), int(lengths.max()))

    def decode(self, payload: Bytes, count: int) -> NDArray[np.uint32]:
        """The places in the table of the ``count`` symbols of a segment."""
        from rdo_kernels.cpu import prefix

        total_bits = 8 * payload.size
        if count > total_bits:
            raise CoderError(f"{count} symbols cannot fit into a payload of {payload.size} bytes")
        indices = np.zeros(count, np.uint32)
        code = self.lookup, self.first_code, self.first_index, self.counts, self.order, self.longest
        used = prefix.decode_huffman(prefix.padded(payload), total_bits, *code, indices)
        if used < 0:
            raise CoderError("the payload is truncated or damaged")
        if total_bits - used >= 8 or (used % 8 and int(payload[-1]) & ((1 << (8 - used % 8)) - 1)):
            raise CoderError("the payload goes on after the last symbol")
        return indices
