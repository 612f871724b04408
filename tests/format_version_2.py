"""A second decoder of checkpoints, written from docs/format.md and docs/coders.md alone."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.format_version_3 import Table as Numbers
from tests.format_version_3 import unzigzag

Decode = Callable[[dict[str, Any], bytes, bytes, int], list[int]]


def bits_of(payload: bytes) -> Iterator[int]:
    for byte in payload:
        for position in range(7, -1, -1):
            yield byte >> position & 1


def take(bits: Iterator[int], count: int) -> int:
    value = 0
    for _ in range(count):
        value = 2 * value + next(bits)
    return value


def fixed_length(config: dict[str, Any], table: bytes, payload: bytes, count: int) -> list[int]:
    numbers, bits = Numbers(table), bits_of(payload)
    smallest, width = numbers.signed(), numbers.number()
    return [smallest + take(bits, width) for _ in range(count)]


def segments(numbers: Numbers, lanes: int, size: int, payload: bytes, count: int, escapes: bool) -> Iterator[Any]:
    """The bytes, the number of symbols and the number of escapes of each segment."""
    for first in range(0, count, size):
        length, escaped = 4 * numbers.number(), numbers.number() if escapes else 0
        yield payload[:length], min(size, count - first), escaped
        payload = payload[length:]
    assert not payload
    assert next(numbers.data, None) is None


def exp_golomb(config: dict[str, Any], table: bytes, payload: bytes, count: int) -> list[int]:
    if not count:
        return []
    numbers = Numbers(table)
    k, lanes, size = numbers.number(), 1 << numbers.number(), 1 << numbers.number()
    ranks = [numbers.signed() for _ in range(numbers.number())] if config["mapping"] == "rank" else []
    symbols: list[int] = []
    for data, length, _ in segments(numbers, lanes, size, payload, count, False):
        words = struct.unpack(f"<{len(data) // 4}I", data)
        bits, begin = [], lanes
        for total in words[:lanes]:
            end = begin + (total + 31) // 32
            lane = "".join(f"{word:032b}" for word in words[begin:end])
            assert "1" not in lane[total:]
            bits.append(map(int, lane[:total]))
            begin = end
        assert begin == len(words)
        for i in range(length):
            lane_bits, zeros = bits[i % lanes], 0
            while not next(lane_bits):
                zeros += 1
            number = ((1 << zeros) + take(lane_bits, zeros) - 1 << k) + take(lane_bits, k)
            symbols.append(ranks[number] if ranks else unzigzag(number))
        assert not any(True for lane_bits in bits for _ in lane_bits)
    return symbols


def huffman(config: dict[str, Any], table: bytes, payload: bytes, count: int) -> list[int]:
    numbers, bits = Numbers(table), bits_of(payload)
    values = numbers.ascending()
    if len(values) == 1:
        return values * count
    ordered = sorted((numbers.number(), value) for value in values)
    words, word = {(ordered[0][0], 0): ordered[0][1]}, 0
    for (before, _), (length, value) in pairwise(ordered):
        word = word + 1 << length - before
        words[length, word] = value
    symbols = []
    for _ in range(count):
        length, word = 0, 0
        while (length, word) not in words:
            length, word = length + 1, 2 * word + next(bits)
        symbols.append(words[length, word])
    return symbols


def rans(config: dict[str, Any], table: bytes, payload: bytes, count: int) -> list[int]:
    if not count:
        return []
    numbers = Numbers(table)
    precision = numbers.number()
    if precision == 0:
        return [numbers.signed()] * count
    lanes, size, width = 1 << numbers.number(), 1 << numbers.number(), numbers.number()
    low = numbers.signed() if width else 0
    entries: list[int | None] = [*numbers.ascending(), *([None] if width else [])]
    frequencies = [numbers.number() for _ in entries]
    starts = [0, *accumulate(frequencies)]
    slots = [index for index, frequency in enumerate(frequencies) for _ in range(frequency)]
    assert len(slots) == 1 << precision
    symbols: list[int] = []
    for data, length, escapes in segments(numbers, lanes, size, payload, count, width > 0):
        states = list(struct.unpack_from(f"<{lanes}I", data))
        begin = 4 * lanes + 4 * ((escapes * width + 31) // 32)
        bits = int.from_bytes(data[4 * lanes : begin], "little")
        escaped = [low + (bits >> number * width) % (1 << width) for number in range(escapes)]
        words = iter(struct.unpack(f"<{(len(data) - begin) // 2}H", data[begin:]))
        for i in range(length):
            state = states[i % lanes]
            slot = state % (1 << precision)
            entry = entries[slots[slot]]
            symbols.append(escaped.pop(0) if entry is None else entry)
            state = frequencies[slots[slot]] * (state >> precision) + slot - starts[slots[slot]]
            states[i % lanes] = state << 16 | next(words) if state < 1 << 16 else state
        assert set(states) == {1 << 16}
        assert not escaped
        assert list(words) in ([], [0])
    return symbols


DECODERS: dict[str, Decode] = {
    "fixed_length": fixed_length,
    "exp_golomb": exp_golomb,
    "huffman": huffman,
    "rans": rans,
}


def decode_file(
    path: Path, version: int = 2, decoders: dict[str, Decode] = DECODERS
) -> dict[str, np.ndarray[Any, Any]]:
    """The coded tensors and the raw ones of a file, in float32."""
    data = path.read_bytes()
    [length] = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["rdo_crc32"] == f"{zlib.crc32(metadata['rdo'].encode()):08x}"
    manifest = json.loads(metadata["rdo"])
    assert (manifest["format"], manifest["version"]) == ("rdo-checkpoint", version)

    def entry(name: str) -> bytes:
        begin, end = header[name]["data_offsets"]
        return data[8 + length + begin : 8 + length + end]

    steps, tensors = np.frombuffer(entry("::steps"), "<f4"), {}
    for name, value in manifest["tensors"].items():
        if isinstance(value, str):
            tensors[name] = tensors[value]
            continue
        group, size, *rest = value
        kind = manifest["groups"][group]
        if kind["kind"] == "raw":
            assert zlib.crc32(entry(name)) == rest[0]
            tensors[name] = np.frombuffer(entry(name), {"float32": "<f4"}[kind["stored"]]).reshape(size)
            continue
        rows, table_bytes, crc = rest
        stream, own, steps = entry(f"{name}::stream"), steps[:rows], steps[rows:]
        assert zlib.crc32(stream + own.tobytes()) == crc
        count = int(np.prod(size))
        decoder = decoders[kind["coder"]["name"]]
        symbols = decoder(kind["coder"], stream[:table_bytes], stream[table_bytes:], count)
        values = np.array(symbols, np.float32).reshape(rows, count // rows) * own[:, None]
        tensors[name] = values.reshape(size)
    assert not len(steps)
    return tensors
