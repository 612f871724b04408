"""The second decoder's part for checkpoints of version 1: what differs, from the end of docs/coders.md."""

from __future__ import annotations

import struct
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from tests import format_version_2
from tests.format_version_2 import Numbers, bits_of, fixed_length, take, unzigzag


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


DECODERS = {**format_version_2.DECODERS, "exp_golomb": exp_golomb, "rans": rans}


def decode_file(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The coded tensors and the raw ones of a file, in float32."""
    return format_version_2.decode_file(path, 1, DECODERS)
