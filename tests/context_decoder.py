"""A decoder of segments of the coder "context", written from docs/coders.md alone: plain Python, no arrays, slow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any


def _exponential(x: int) -> Fraction:
    """exp(x / 256), x >= 0, as the document has it: powers of a number rounded down to 96 bits."""
    one = 1 << 96
    term = ratio = one
    for n in range(1, 20):
        term //= 256 * n
        ratio += term
    power = one
    for _ in range(x):
        power = power * ratio >> 96
    return Fraction(power, one)


def _squash_table() -> dict[int, int]:
    one = 1 << 96
    ratio, power = int(_exponential(1) * one), one
    table = {}
    for x in range(2817):
        p = (power << 16) // (power + one)
        table[x], table[-x] = p, 65536 - p
        power = power * ratio >> 96
    return {x: min(max(p, 16), 65520) for x, p in table.items()}


SQUASH = _squash_table()
STRETCH = [next((x for x in range(-2816, 2816) if SQUASH[x] >= 16 * p + 8), 2815) for p in range(0, 4096)]


def level(average: int) -> int:
    return math.floor(8 * math.log2(1 + (average >> 9)) + 1e-9)


def rate(n: int) -> int:
    return 2 * 65536 // (2 * n + 3)


class Counter:
    def __init__(self) -> None:
        self.p, self.n = 1 << 21, 0

    def learn(self, bit: int) -> None:
        self.p += ((2**22 - 1 if bit else 0) - self.p) * rate(self.n) // 65536
        self.n = min(self.n + 1, 255)


class Average:
    def __init__(self, value: int, seen: int) -> None:
        self.value, self.seen = value, seen

    def learn(self, value: int, limit: int = 255) -> None:
        self.value += (value * 65536 - self.value) * rate(min(self.seen, limit)) // 65536
        self.seen += 1

    def steps(self, size: int, limit: int) -> int:
        return min(max(limit + (self.value + size // 2) // size, 0), 2 * limit)


class Bits:
    """The range decoder: the interval in units of 2^-64 of the word that comes next."""

    def __init__(self, data: bytes) -> None:
        self.data, self.used = data, 8
        self.low, self.width = 0, 2**64 - 1
        self.code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def bit(self, probability: int = 32768) -> int:
        bound = (self.width >> 16) * probability
        bit = int(self.code < self.low + bound)
        if bit:
            self.width = bound
        else:
            self.low += bound
            self.width -= bound
        if self.width < 2**32:
            self.code = (self.code << 32) + int.from_bytes(self.data[self.used : self.used + 4].ljust(4, b"\0"), "big")
            self.used += 4
            self.low <<= 32
            self.width <<= 32
        return bit

    def ends(self) -> bool:
        """Whether the code is the number with the most zero bytes at its end, and all its bytes are used."""
        for zeros in range(8, -1, -1):
            number = -(-self.low >> 8 * zeros) << 8 * zeros
            if number < self.low + self.width:
                break
        return number == self.code and len(self.data) <= self.used and not self.data.endswith(b"\0")


def decode(data: bytes, count: int, row_length: int, column: int, shift: int) -> list[int]:
    """The symbols of a segment whose first one is in ``column``; ValueError if it does not end as it should."""
    bits = Bits(data)
    counters: dict[object, Counter] = {}
    weights = [[17694] * 4 for _ in range(16)]
    escapes = [32768] * 31
    magnitudes: dict[int, Average] = {}
    signs: dict[int, Average] = {}
    above: dict[int, int] = {}
    everywhere, recent, left = Average(65536, 0), 0, 0
    row_magnitude, row_sign, agreement = 65536, 0, 0
    rows = in_row = slot = 0
    symbols: list[int] = []

    def modelled(keys: list[object], chosen: int) -> int:
        used = [counters.setdefault(key, Counter()) for key in keys]
        inputs = [STRETCH[counter.p >> 10] for counter in used]
        total = (sum(w * x for w, x in zip(weights[chosen], inputs, strict=True)) + 32768) // 65536
        probability = SQUASH[min(max(total, -2816), 2815)]
        bit = bits.bit(probability)
        error = 10 * (65536 * bit - probability)
        weights[chosen] = [w + (x * error + 2**19) // 2**20 for w, x in zip(weights[chosen], inputs, strict=True)]
        for counter in used:
            counter.learn(bit)
        return bit

    for _ in range(count):
        column_magnitude = magnitudes.setdefault(slot, Average(65536, 1))
        column_sign = signs.setdefault(slot, Average(0, 2))
        in_this_row = level(row_magnitude), level(column_magnitude.value)
        joint = min(max(sum(in_this_row) - level(everywhere.value), 0), 95) // 2
        high = 0
        while high < 15:
            kinds = [("joint", joint), ("pair", in_this_row[0] // 4, in_this_row[1] // 4)]
            kinds += [("recent", level(recent) // 4), ("column", in_this_row[1] // 2)]
            if not modelled([(*kind, high) for kind in kinds], high):
                break
            high += 1
        if high == 15:
            extra = 0
            while bits.bit(escapes[extra]):
                escapes[extra] += (65536 - escapes[extra]) // 32
                extra += 1
            escapes[extra] -= escapes[extra] // 32
            rest = 1
            for _ in range(extra):
                rest = 2 * rest + bits.bit()
            high = rest + 14
        magnitude = high
        for _ in range(shift):
            magnitude = 2 * magnitude + bits.bit()
        known, sign, up = min(high, 31), 0, above.get(slot, 0)
        if magnitude:
            lean = column_sign.steps(4096, 12)
            row_lean, agree = Average(row_sign, 0).steps(8192, 4), Average(agreement, 0).steps(4096, 8)
            negative = modelled(
                [
                    ("sign by column", lean, min(known, 4), left),
                    ("sign by row", lean, row_lean),
                    ("sign by agreement", agree, up),
                    ("sign by above", lean, up),
                ],
                15,
            )
            sign = -1 if negative else 1
            column_sign.seen = rows + 2
            column_sign.learn(sign)
            averages = [Average(row_sign, in_row + 4), Average(agreement, in_row + 4)]
            averages[0].learn(sign)
            if up:
                averages[1].learn(sign * up)
            row_sign, agreement = averages[0].value, averages[1].value
        symbols.append(sign * magnitude)
        column_magnitude.seen = rows + 1
        column_magnitude.learn(known)
        row = Average(row_magnitude, in_row + 4)
        row.learn(known)
        row_magnitude = row.value
        everywhere.learn(known, 1023)
        recent += (65536 * known - recent) // 16
        above[slot] = left = sign
        slot = (slot + 1) % min(row_length, count)
        in_row += 1
        column += 1
        if column == row_length:
            column = in_row = left = 0
            rows += 1
    if any(bits.bit() for _ in range(16)) or not bits.ends():
        raise ValueError("the segment does not end as it should")
    return symbols


def context(config: dict[str, Any], table: Any, parts: list[tuple[bytes, int]]) -> Iterator[int]:
    """The symbols of segments, each with how many it holds; the configuration has the length of a row, too."""
    kind, row_length, begin = table.number(), config["row_length"], 0
    value = 0 if kind else table.signed()
    for data, count in parts:
        yield from decode(data, count, row_length, begin % row_length, kind - 1) if kind else [value] * count
        begin += count
