"""The format as its documents describe it: committed files, read by rdo and by a second decoder written from docs/."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rdo

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = sorted(FIXTURES.glob("*.rdo"))


class Numbers:
    """The numbers of a table."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)

    def number(self) -> int:
        value, shift = 0, 0
        for byte in self.data:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise EOFError

    def signed(self) -> int:
        return unzigzag(self.number())

    def ascending(self) -> list[int]:
        values: list[int] = []
        for _ in range(self.number()):
            first = values[-1] + self.number() + 2 if values else self.signed()
            values += range(first, first + self.number() + 1)
        return values


def unzigzag(number: int) -> int:
    return -(number + 1) // 2 if number % 2 else number // 2


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


def exp_golomb(config: dict[str, Any], table: bytes, payload: bytes, count: int) -> list[int]:
    numbers, bits = Numbers(table), bits_of(payload)
    k = numbers.number()
    ranks = [numbers.signed() for _ in range(numbers.number())] if config["mapping"] == "rank" else []
    symbols = []
    for _ in range(count):
        zeros = 0
        while not next(bits):
            zeros += 1
        number = ((1 << zeros) + take(bits, zeros) - 1 << k) + take(bits, k)
        symbols.append(ranks[number] if ranks else unzigzag(number))
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
    numbers = Numbers(table)
    precision = numbers.number()
    if precision == 0:
        return [numbers.signed()] * count
    escapes = numbers.number()
    entries: list[int | None] = [*numbers.ascending(), *([None] if escapes else [])]
    frequencies = [numbers.number() for _ in entries]
    starts = [0, *accumulate(frequencies)]
    escaped: list[int] = []
    if escapes:
        rest = bytes(numbers.data)
        header = Numbers(rest)
        header.signed()
        length = (escapes * header.number() + 7) // 8
        escaped = fixed_length({}, rest, payload[len(payload) - length :], escapes)
        payload = payload[: len(payload) - length]
    lanes = 1 if count < 4096 else 8
    states = list(struct.unpack_from(f"<{lanes}I", payload))
    words = iter(struct.unpack(f"<{(len(payload) - 4 * lanes) // 2}H", payload[4 * lanes :]))
    slots = [index for index, frequency in enumerate(frequencies) for _ in range(frequency)]
    assert len(slots) == 1 << precision
    found: list[int | None] = []
    for i in range(count):
        state = states[i % lanes]
        slot = state % (1 << precision)
        index = slots[slot]
        found.append(entries[index])
        state = frequencies[index] * (state >> precision) + slot - starts[index]
        states[i % lanes] = state << 16 | next(words) if state < 1 << 16 else state
    assert set(states) == {1 << 16}
    assert next(words, None) is None
    return [escaped.pop(0) if symbol is None else symbol for symbol in found]


DECODERS = {"fixed_length": fixed_length, "exp_golomb": exp_golomb, "huffman": huffman, "rans": rans}


def decode_by_the_documents(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The coded tensors and the raw ones of a file, in float32."""
    data = path.read_bytes()
    [length] = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["rdo_crc32"] == f"{zlib.crc32(metadata['rdo'].encode()):08x}"
    manifest = json.loads(metadata["rdo"])
    assert (manifest["format"], manifest["version"]) == ("rdo-checkpoint", 1)

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
        decoder = DECODERS[kind["coder"]["name"]]
        symbols = decoder(kind["coder"], stream[:table_bytes], stream[table_bytes:], count)
        values = np.array(symbols, np.float32).reshape(rows, count // rows) * own[:, None]
        tensors[name] = values.reshape(size)
    assert not len(steps)
    return tensors


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_files_are_read_exactly(path: Path) -> None:
    expected = load_file(FIXTURES / f"{path.stem}.expected.safetensors")
    found = rdo.load_compressed(path)
    documented = decode_by_the_documents(path)
    assert found.keys() == expected.keys() == documented.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert np.array_equal(documented[name], tensor.float().numpy())


def test_there_is_a_file_of_every_coder() -> None:
    groups = [group for path in FILES for group in json.loads(_metadata(path)["rdo"])["groups"]]
    assert {group["coder"]["name"] for group in groups if group["kind"] == "coded"} == set(DECODERS)


def _metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    [length] = struct.unpack_from("<Q", data)
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
