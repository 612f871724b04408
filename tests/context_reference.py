"""A second decoder of ``context``, written from docs/coders.md alone; slow."""

from __future__ import annotations

from typing import Any

HALF = 1 << 15


def moved(average: int, magnitude: int, seen: int) -> int:
    return average + ((256 * magnitude - average) * (65536 // (seen + 2)) >> 16)


def level(average: int) -> int:
    value = average >> 4
    bits = value.bit_length()
    return min(23, 2 * bits - 1 + (value >> bits - 2 & 1 if bits > 1 else 0)) if value else 0


class Range:
    def __init__(self, data: bytes) -> None:
        self.data, self.low, self.high, self.position = data, 0, 2**32 - 1, 4
        self.code = int.from_bytes(data[:4], "big")

    def decide(self, probability: int) -> int:
        middle = self.low + ((self.high - self.low) * probability >> 16)
        decision = self.code <= middle
        if decision:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, (self.high << 8 & 0xFFFFFFFF) | 255
            self.code = (self.code << 8 & 0xFFFFFFFF) | self.data[self.position]
            self.position += 1
        return int(decision)


def decode(data: bytes, count: int, first: int, row_length: int) -> list[int]:
    source, symbols = Range(data), []
    contexts: dict[Any, list[int]] = {}
    columns: dict[int, list[int]] = {}
    row, every = [0, 8], [0, 0]
    for i in range(first, first + count):
        column = columns.setdefault(i % row_length, [0, 0])
        magnitude = 0
        while magnitude < 15:
            context = contexts.setdefault((level(column[0]), level(row[0]), magnitude), [HALF, 0])
            larger = source.decide(context[0])
            probability = context[0] + ((65536 * larger - context[0]) * (65536 // (context[1] + 2)) >> 16)
            context[:] = [min(max(probability, 16), 65520), min(context[1] + 1, 255)]
            if not larger:
                break
            magnitude += 1
        if magnitude == 15:
            zeros = 0
            while not source.decide(HALF):
                zeros += 1
            value = 1
            for _ in range(zeros):
                value = 2 * value + source.decide(HALF)
            magnitude += value - 1
        negative = magnitude > 0 and source.decide(HALF)
        symbols.append(-magnitude if negative else magnitude)
        for average, most in ((column, 60), (row, 60), (every, 1023)):
            average[:] = [moved(average[0], min(magnitude, 255), average[1]), min(average[1] + 1, most)]
        if (i + 1) % row_length == 0:
            row = [every[0], 8]
    assert source.position == len(data)
    return symbols
