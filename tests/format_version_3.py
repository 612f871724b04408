"""A second decoder of checkpoints of format version 3, written from docs/format.md and docs/coders.md alone."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from tests import context_decoder, implied_frequencies
from tests.format_version_2 import Numbers, bits_of, take, unzigzag

Decode = Callable[[bytes, int], list[int]]
"""The symbols, of which there are so many, of a segment."""
CRC = [0] * 256
for byte in range(256):
    CRC[byte] = byte
    for _ in range(8):
        CRC[byte] = CRC[byte] >> 1 ^ 0x82F63B78 * (CRC[byte] & 1)


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def fixed_length(config: dict[str, Any], table: Numbers, segments: int) -> Iterator[Decode]:
    smallest, width = table.signed(), table.number()
    for _ in range(segments):
        yield lambda data, n: [smallest + take(bits, width) for bits in [bits_of(data)] for _ in range(n)]


def exp_golomb(config: dict[str, Any], table: Numbers, segments: int) -> Iterator[Decode]:
    k, lanes = table.number(), 1 << table.number()
    ranks = [table.signed() for _ in range(table.number())] if config["mapping"] == "rank" else []

    def decode(data: bytes, n: int) -> list[int]:
        words, symbols = struct.unpack(f"<{len(data) // 4}I", data), []
        streams, begin = [], lanes
        for bits in words[:lanes]:
            end = begin + (bits + 31) // 32
            lane = "".join(f"{word:032b}" for word in words[begin:end])
            assert "1" not in lane[bits:]
            streams.append(map(int, lane[:bits]))
            begin = end
        for i in range(n):
            stream, zeros = streams[i % lanes], 0
            while not next(stream):
                zeros += 1
            number = ((1 << zeros) + take(stream, zeros) - 1 << k) + take(stream, k)
            symbols.append(ranks[number] if ranks else unzigzag(number))
        assert begin == len(words)
        assert not any(True for stream in streams for _ in stream)
        return symbols

    yield from [decode] * segments


def huffman(config: dict[str, Any], table: Numbers, segments: int) -> Iterator[Decode]:
    values, words, word, last = table.ascending(), {}, 0, 0
    for length, value in sorted((table.number(), value) for value in values) if len(values) > 1 else []:
        word = word + 1 << length - last if words else 0
        words[length, word], last = value, length

    def decode(data: bytes, n: int) -> list[int]:
        if len(values) == 1:
            return values * n
        bits, symbols = bits_of(data), []
        for _ in range(n):
            length, word = 0, 0
            while (length, word) not in words:
                length, word = length + 1, 2 * word + next(bits)
            symbols.append(words[length, word])
        return symbols

    yield from [decode] * segments


def rans(config: dict[str, Any], table: Numbers, segments: int) -> Iterator[Decode]:
    precision = table.number()
    if precision == 0:
        value = table.signed()
        yield from [lambda data, n: [value] * n] * segments
        return
    lanes, width = 1 << table.number(), table.number()
    low = table.signed() if width else 0
    kind = table.number()
    if kind == 0:
        entries: list[int | None] = [*table.ascending(), *([None] if width else [])]
        frequencies = [table.number() for _ in entries]
    else:
        first, length, shape, scale = table.signed(), table.number() + 1, table.number(), table.signed()
        center, zero = table.signed() if kind == 2 else 0, table.number()
        law = first, length, shape, scale, center, zero, table.number() if width else 0
        entries = [*range(first, first + length), *([None] if width else [])]
        frequencies = implied_frequencies.frequencies(precision, *law)
    starts = [0, *accumulate(frequencies)]
    slots = [index for index, frequency in enumerate(frequencies) for _ in range(frequency)]
    assert len(slots) == 1 << precision
    for escapes in [table.number() if width else 0 for _ in range(segments)]:

        def decode(data: bytes, n: int, escapes: int = escapes) -> list[int]:
            states, symbols = list(struct.unpack_from(f"<{lanes}I", data)), []
            begin = 4 * lanes + 4 * ((escapes * width + 31) // 32)
            bits = int.from_bytes(data[4 * lanes : begin], "little")
            escaped = [low + (bits >> number * width) % (1 << width) for number in range(escapes)]
            words = iter(struct.unpack(f"<{(len(data) - begin) // 2}H", data[begin:]))
            for i in range(n):
                state = states[i % lanes]
                slot = state % (1 << precision)
                entry = entries[slots[slot]]
                symbols.append(escaped.pop(0) if entry is None else entry)
                state = frequencies[slots[slot]] * (state >> precision) + slot - starts[slots[slot]]
                states[i % lanes] = state << 16 | next(words) if state < 1 << 16 else state
            assert (set(states), escaped) == ({1 << 16}, [])
            assert list(words) in ([], [0])
            return symbols

        yield decode


def float_bits(config: dict[str, Any], table: Numbers, segments: int) -> Iterator[Decode]:
    width = config["width"]
    tables = [bytes(next(table.data) for _ in range(table.number())) for _ in range(width // 8)]
    for coded in zip(
        *([*rans({}, Numbers(own), segments)] if own else [None] * segments for own in tables), strict=True
    ):

        def decode(data: bytes, n: int, coded: tuple[Decode | None, ...] = coded) -> list[int]:
            number = sum(plane is not None for plane in coded)
            lengths = iter(struct.unpack_from(f"<{number}I", data))
            data, symbols = data[4 * number :], [0] * n
            for plane in coded:
                length = next(lengths) if plane else n
                values = plane(data[:length], n) if plane else data[:length]
                symbols, data = [256 * s + v for s, v in zip(symbols, values, strict=True)], data[length:]
            assert not data
            return [s >> 1 | (s & 1) << width - 1 for s in symbols]

        yield decode


DECODERS = {f.__name__: f for f in (fixed_length, exp_golomb, huffman, rans, float_bits)}
STORED = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "bool": "?"}
STORED |= {f"{kind}{8 * size}": f"<{kind[0]}{size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)}
STORED |= {"float8_e4m3fn": "u1", "float8_e5m2": "u1"}


def decode_stream(
    config: dict[str, Any], table: bytes, segments: list[bytes], log2: int, count: int, row_length: int = 1
) -> list[int]:
    numbers: Numbers = Numbers(table)
    symbols: list[int] = []
    if config["name"] == "context":  # the only coder that knows of rows
        kind = numbers.number()
        value = 0 if kind else numbers.signed()
        for begin, data in zip(range(0, count, 1 << log2), segments, strict=True):
            n = min(1 << log2, count - begin)
            own = context_decoder.decode(data, n, row_length, begin % row_length, kind - 1) if kind else [value] * n
            symbols += own
        assert next(numbers.data, None) is None
        return symbols
    decoders = list(DECODERS[config["name"]](config, numbers, len(segments)))
    assert next(numbers.data, None) is None
    for i, (decode, data) in enumerate(zip(decoders, segments, strict=True)):
        symbols += decode(data, min(1 << log2, count - (i << log2)))
    return symbols


def floats(bits: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return (bits.astype("<u4") << 16).view("<f4")
    if dtype == "float8_e5m2":
        return (bits.astype("<u2") << 8).view("<f2")
    if dtype == "float8_e4m3fn":
        sign, exponent, mantissa = np.where(bits & 128, -1.0, 1.0), bits >> 3 & 15, bits & 7
        values = sign * (mantissa / 8 + (exponent > 0)) * 2.0 ** (np.maximum(exponent, 1).astype(int) - 7)
        return np.where(bits & 127 == 127, np.nan, values)
    return bits.astype({"float32": "<u4", "float16": "<u2"}[dtype]).view(STORED[dtype])


def decode_file(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The coded tensors and the raw ones of a file; floating-point ones in float32."""
    data = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:end])
    manifest = json.loads(header.pop("__metadata__")["rdo"])
    assert (manifest["format"], manifest["version"]) == ("rdo-checkpoint", 3)
    entries = {name: data[end + e["data_offsets"][0] : end + e["data_offsets"][1]] for name, e in header.items()}
    assert (
        data[-36:] == entries["::seal"] == struct.pack("<I", crc32c(data[:end])) + hashlib.sha256(data[:-32]).digest()
    )
    checksums = iter(np.frombuffer(entries.get("::raw_crc32c", b""), "<u4"))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in manifest["tensors"].items():
        if isinstance(value, str):
            tensors[name] = tensors[value]
            continue
        [group, size, *numbers] = value
        kind, count = manifest["groups"][group], int(np.prod(size))
        if kind["kind"] == "raw":
            raw = entries[name + "::raw" if name + "::raw" in entries else name]
            assert all(crc32c(raw[at : at + 2**20]) == next(checksums) for at in range(0, len(raw), 2**20))
            values = np.frombuffer(raw, STORED[kind["stored"]])
            values = floats(values, kind["stored"]) if kind["stored"][:6] in ("bfloat", "float8") else values
        else:
            rows, table, log2, checksum = [0, *numbers] if kind["kind"] == "lossless" else numbers
            stream, segments = entries[name + "::stream"], -(-count >> log2)
            head = stream[: table + 4 * rows + 8 * segments]
            assert crc32c(head) == checksum
            at, parts = len(head), []
            for length, crc in struct.iter_unpack("<II", head[table + 4 * rows :]):
                parts.append(stream[at : at + length])
                assert crc32c(parts[-1]) == crc
                at += length
            assert at == len(stream)
            lengths = [length for length in accumulate(reversed(size), mul, initial=1) if length >= 64]
            row_length = min(lengths, default=count)
            symbols = np.array(decode_stream(kind["coder"], head[:table], parts, log2, count, row_length), np.int64)
            steps = np.frombuffer(head[table : table + 4 * rows], "<f4")
            products = symbols.astype("<f4").reshape(max(rows, 1), -1) * steps[:, None] if rows else symbols
            values = products if rows else floats(symbols, kind["dtype"])
            if kind["dtype"] == "bfloat16":  # half to even
                wide = values.view("<u4").astype(np.int64)
                values = floats(wide + 0x7FFF + (wide >> 16 & 1) >> 16, "bfloat16")
        tensors[name] = values.reshape(size)
    assert next(checksums, None) is None
    return tensors
