"""A second implementation of implied frequencies, in plain integers, written from docs/coders.md alone."""

from __future__ import annotations

from math import isqrt
from typing import Any


def powers() -> list[int]:
    found, root = [], 2 << 60
    for _ in range(30):
        root = isqrt(root << 60)
        found.append((root + (1 << 29)) >> 30)
    return found


POWERS = powers()


def log2(d: int) -> int:
    whole = d.bit_length() - 1
    x, result = d << (30 - whole), whole
    for _ in range(30):
        x = x * x // 2**30
        result *= 2
        if x >= 2**31:
            x //= 2
            result += 1
    return result


def exp2(f: int) -> int:
    x = 2**30
    for power, bit in zip(POWERS, f"{f:030b}", strict=True):
        if bit == "1":
            x = (x * power + 2**29) // 2**30
    return x


def exponent(d: int, shape: int, scale: int) -> int:
    if d == 0:
        return 0
    y = shape * (log2(d) - 3 * 2**30 - scale * 2**25) // 64
    whole, part = divmod(y, 2**30)
    if whole >= 6:
        return 2**36
    return exp2(part) << whole if whole >= 0 else exp2(part) >> -whole


def weights(low: int, length: int, shape: int, scale: int, center: int, zero: int) -> list[int | None]:
    symbols = range(low, low + length)
    exponents = [None if zero and k == 0 else exponent(abs(8 * k - center), shape, scale) for k in symbols]
    least = min(e for e in exponents if e is not None)
    found: list[int | None] = []
    for e in exponents:
        if e is None:
            found.append(None)
            continue
        whole, part = divmod(least - e, 2**30)
        found.append((exp2(part) + 2 ** (9 - whole)) >> (10 - whole))
    return found


def frequencies(
    precision: int, low: int, length: int, shape: int, scale: int, center: int, zero: int, escape: int
) -> list[int]:
    of = weights(low, length, shape, scale, center, zero)
    slots = 2**precision - zero - escape

    def portion(w: int, c: int) -> int:
        return max(1, (w * c + 2**35) // 2**36)

    def all_portions(c: int) -> list[int]:
        return [0 if w is None else portion(w, c) for w in of]

    low_c, high_c = 0, 2**32
    while high_c - low_c > 1:
        middle = (low_c + high_c) // 2
        if sum(all_portions(middle)) <= slots:
            low_c = middle
        else:
            high_c = middle
    found = all_portions(low_c)
    left = slots - sum(found)
    for place, more in enumerate(all_portions(low_c + 1)):
        if left and more > found[place]:
            found[place] += 1
            left -= 1
    if zero:
        found[-low] = zero
    return [*found, escape] if escape else found


def symbols_and_frequencies(table: Any, precision: int, escape: bool) -> tuple[list[int], list[int]]:
    """The kept symbols of a table of rANS, and the frequencies, that of the escape last; implied or written out."""
    kind = table.number()
    if kind == 0:
        values = table.ascending()
        return values, [table.number() for _ in range(len(values) + escape)]
    first, count, shape, scale = table.signed(), table.number() + 1, table.number(), table.signed()
    center, zero = table.signed() if kind == 2 else 0, table.number()
    law = first, count, shape, scale, center, zero, table.number() if escape else 0
    return [*range(first, first + count)], frequencies(precision, *law)
