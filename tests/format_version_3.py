"""A second decoder of checkpoints of format versions 3 and 4, written from docs/format.md and docs/coders.md alone.

Three parts that it calls have files of their own: frequencies that a law implies, the coder "context", and steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from tests.context_decoder import context
from tests.element_steps import element_steps
from tests.implied_frequencies import symbols_and_frequencies

Config, Parts, Array = dict[str, Any], list[tuple[bytes, int]], np.ndarray[Any, Any]
TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
TYPES |= {f"{kind}{8 * size}": f"<{kind[0]}{size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)}
TYPES |= {"float8_e4m3fn": "u1", "float8_e5m2": "u1", "bool": "?"}


def crc32c(data: bytes, register: int = 0xFFFFFFFF) -> int:
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    return register ^ 0xFFFFFFFF


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def unzigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


class Table:
    def __init__(self, data: bytes) -> None:
        self.data = iter(data)

    def number(self) -> int:
        byte = next(self.data)
        return byte if byte < 128 else byte - 128 + 128 * self.number()

    def signed(self) -> int:
        return unzigzag(self.number())

    def ascending(self) -> list[int]:
        values: list[int] = []
        for _ in range(self.number()):
            first = values[-1] + self.number() + 2 if values else self.signed()
            values += range(first, first + self.number() + 1)
        return values


def fixed_length(config: Config, table: Table, parts: Parts) -> Iterator[int]:
    smallest, width = table.signed(), table.number()
    for data, count in parts:
        bits = bits_of(data)
        yield from (smallest + int("0" + bits[i * width : (i + 1) * width], 2) for i in range(count))


def exp_golomb(config: Config, table: Table, parts: Parts) -> Iterator[int]:
    k, lanes = table.number(), 1 << table.number()
    ranks = [table.signed() for _ in range(table.number())] if config["mapping"] == "rank" else None
    for data, count in parts:
        words = np.frombuffer(data, "<u4").astype(np.int64)
        begins = 32 * (lanes + np.cumsum([0, *(words[:lanes] + 31) // 32]))
        bits, at = bits_of(words.astype(">u4").tobytes()), begins[:-1].tolist()
        for i in range(count):
            begin = at[i % lanes]
            middle = 2 * bits.index("1", begin) - begin + 1
            at[i % lanes] = middle + k
            number = (int(bits[begin:middle], 2) - 1 << k) + int("0" + bits[middle : middle + k], 2)
            yield ranks[number] if ranks else unzigzag(number)
        assert (at, begins[-1]) == ((begins[:-1] + words[:lanes]).tolist(), len(bits))


def huffman(config: Config, table: Table, parts: Parts) -> Iterator[int]:
    values, word, last = table.ascending(), -1, 0
    codes = {} if len(values) > 1 else {"": values[0]}
    for length, value in sorted((table.number(), value) for value in values) if not codes else []:
        word, last = word + 1 << length - last, length
        codes[f"{word:0{length}b}"] = value
    for data, count in parts:
        bits, at = bits_of(data), 0
        for _ in range(count):
            end = next(end for end in range(at, len(bits) + 1) if bits[at:end] in codes)
            yield codes[bits[at:end]]
            at = end


def rans(config: Config, table: Table, parts: Parts) -> Iterator[int]:
    precision = table.number()
    if precision == 0:
        yield from [table.signed()] * sum(count for _, count in parts)
        return
    lanes, width = 1 << table.number(), table.number()
    low = table.signed() if width else 0
    values, frequencies = symbols_and_frequencies(table, precision, width > 0)
    starts, slots = [0, *accumulate(frequencies)], np.repeat(range(len(frequencies)), frequencies).tolist()
    assert len(slots) == 1 << precision
    escapes = [table.number() if width else 0 for _ in parts]
    for (data, count), escaped in zip(parts, escapes, strict=True):
        middle = 4 * lanes + 4 * ((escaped * width + 31) // 32)
        states = np.frombuffer(data[: 4 * lanes], "<u4").tolist()
        packed = int.from_bytes(data[4 * lanes : middle], "little")
        outside = (low + (packed >> i * width) % (1 << width) for i in range(escaped))
        words = iter(np.frombuffer(data[middle:], "<u2").tolist())
        for i in range(count):
            state = states[i % lanes]
            entry = slots[state % len(slots)]
            yield values[entry] if entry < len(values) else next(outside)
            state = frequencies[entry] * (state >> precision) + state % len(slots) - starts[entry]
            states[i % lanes] = state << 16 | next(words) if state < 1 << 16 else state
        assert (set(states), [*outside], [*words] in ([], [0])) == ({1 << 16}, [], True)


def float_bits(config: Config, table: Table, parts: Parts) -> Iterator[int]:
    tables = [bytes(next(table.data) for _ in range(table.number())) for _ in range(config["width"] // 8)]
    planes: list[Parts] = [[] for _ in tables]
    for data, count in parts:
        at = 4 * sum(map(bool, tables))
        lengths = iter(np.frombuffer(data[:at], "<u4").tolist())
        for own, plane in zip(tables, planes, strict=True):
            begin, at = at, at + (next(lengths) if own else count)
            plane.append((data[begin:at], count))
        assert at == len(data)
    stored = [b"".join(data for data, _ in plane) for plane in planes]
    values = [rans({}, Table(tables[i]), planes[i]) if tables[i] else stored[i] for i in range(len(tables))]
    for symbol in zip(*values, strict=True):
        number = int.from_bytes(symbol, "big")
        yield number >> 1 | (number & 1) << config["width"] - 1


DECODERS = {f.__name__: f for f in (fixed_length, exp_golomb, huffman, rans, float_bits, context)}


def decode_stream(config: Config, table: bytes, data: list[bytes], log2: int, count: int, row: int = 1) -> list[int]:
    numbers = Table(table)
    parts = [(segment, min(1 << log2, count - (i << log2))) for i, segment in enumerate(data)]
    symbols = list(DECODERS[config["name"]](config | {"row_length": row}, numbers, parts))
    assert (next(numbers.data, None), len(symbols)) == (None, count)
    return symbols


def decode_file(path: Path) -> dict[str, Array]:
    """The tensors of a file; the bits of those whose data types NumPy does not have."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    manifest = json.loads(header.pop("__metadata__")["rdo"])
    channels = any("channels" in group for group in manifest["groups"])
    assert (manifest["format"], manifest["version"]) == ("rdo-checkpoint", 4 if channels else 3)
    entries = {name: data[end + e["data_offsets"][0] : end + e["data_offsets"][1]] for name, e in header.items()}
    assert entries["::seal"] == crc32c(data[:end]).to_bytes(4, "little") + hashlib.sha256(data[:-32]).digest()
    checksums = iter(np.frombuffer(entries.get("::raw_crc32c", b""), "<u4"))
    tensors: dict[str, Array] = {}
    for name, value in manifest["tensors"].items():
        if isinstance(value, str):
            tensors[name] = tensors[value]
            continue
        [number, size, *numbers] = value
        group, count = manifest["groups"][number], int(np.prod(size))
        if group["kind"] == "raw":
            raw = entries.get(name + "::raw", entries.get(name, b""))
            assert all(crc32c(raw[at : at + 2**20]) == next(checksums) for at in range(0, len(raw), 2**20))
            values = np.frombuffer(raw, TYPES[group["stored"]])
            if group["stored"] == "bfloat16" != group["dtype"]:
                values = (values.astype("<u4") << 16).view("<f4").astype(TYPES[group["dtype"]])
        else:
            values = coded(entries[name + "::stream"], group, size, count, *numbers)
        tensors[name] = values.reshape(size)
    assert next(checksums, None) is None
    return tensors


def coded(stream: bytes, group: Config, shape: list[int], count: int, *numbers: int) -> Array:
    """The elements of a tensor from its stream."""
    [steps, table_bytes, log2, checksum] = [0, *numbers] if group["kind"] == "lossless" else numbers
    scales, begin = element_steps(stream, table_bytes, steps, count, group.get("channels"))
    at = begin + 8 * -(-count >> log2)
    assert crc32c(stream[:at]) == checksum
    sizes, checksums = np.frombuffer(stream[begin:at], "<u4").reshape(-1, 2).astype(np.int64).T
    parts = [part.tobytes() for part in np.split(np.frombuffer(stream[at:], "u1"), np.cumsum(sizes)[:-1])]
    assert ([crc32c(part) for part in parts], at + sizes.sum()) == (checksums.tolist(), len(stream))
    lengths = [length for length in accumulate(reversed(shape), mul, initial=1) if length >= 64]
    symbols = decode_stream(group["coder"], stream[:table_bytes], parts, log2, count, min(lengths, default=count))
    if group["kind"] == "lossless":
        return np.array(symbols, f"<u{group['coder']['width'] // 8}").view(TYPES[group["dtype"]])
    values = np.array(symbols, "<f4") * scales
    if group["dtype"] == "bfloat16":  # the nearest, of two the even one
        values = values.view("<u4") + 0x7FFF + (values.view("<u4") >> 16 & 1) >> 16
    return values.astype(TYPES[group["dtype"]])
