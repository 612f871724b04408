"""An encoder's search for the implied table with which symbols take least space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Histogram
from rdo.coders.implied_table import MAX_SCALE, MAX_SHAPE, ImpliedTable
from rdo.coders.varint import Writer

ESCAPE_BITS = 40
"""The number of escapes in the table, and what fills their last word, roughly."""
_MAX_LENGTH = 1 << 16
_SHORTER = 0.7
"""A range of kept symbols is tried if it is this much shorter than the last, or more."""
_IN_VAIN = 2
"""The search ends after so many ranges that are worse than the best."""
_DOUBT_BITS = 32
"""What a search counts is off by so much, or less."""
_POLISHED_LENGTH = 1 << 10
_LAPLACE = 64


@dataclass(frozen=True)
class Range:
    """Kept symbols, ``low`` and its successors, with ``counts``, int64 [K].

    Attributes:
        escapes: number of escaped symbols.
        width: bits of an escaped symbol less ``least``, the smallest; 0 if there are none.
    """

    low: int
    counts: NDArray[np.int64]
    escapes: int
    width: int
    least: int

    @property
    def zeros(self) -> int:
        """How often the symbol 0 occurs, if it is kept."""
        return int(self.counts[-self.low]) if -len(self.counts) < self.low <= 0 else 0

    @property
    def total(self) -> int:
        """Number of symbols, escaped ones among them."""
        return int(self.counts.sum()) + self.escapes


@dataclass(frozen=True)
class Fit:
    """A law for the symbols of a range; attributes as those of an ImpliedTable."""

    kept: Range
    shape: int
    scale: int
    center: int
    peak: bool
    """Whether the symbol 0 has a frequency of its own."""

    @cached_property
    def _weights(self) -> NDArray[np.int64]:
        return self._table(1, 1).weights()

    def table(self, precision: int) -> ImpliedTable | None:
        """The table for a precision, unless that is too small."""
        slots, total = 1 << precision, self.kept.total
        zero = max(1, round(slots * self.kept.zeros / total)) if self.peak else 0
        escape = max(1, round(slots * self.kept.escapes / total)) if self.kept.escapes else 0
        table = self._table(zero, escape)
        excess = table.weighted + zero + escape - slots
        if excess > 0 and zero > excess:
            table = self._table(zero - excess, escape)
        return table if table.weighted + table.zero + escape <= slots else None

    def _table(self, zero: int, escape: int) -> ImpliedTable:
        escape = escape if self.kept.escapes else 0
        fields = self.shape, self.scale, self.center, zero if self.peak else 0, escape
        return ImpliedTable(self.kept.low, len(self.kept.counts), *fields)

    def frequencies(self, table: ImpliedTable, precision: int) -> NDArray[np.int64]:
        """Those of a table that :meth:`table` gave for this precision."""
        return table.divide(self._weights, precision)

    def bits(self, precision: int) -> float:
        """Bits of code and table; infinite if no table is possible."""
        from rdo_kernels.cpu import implied_fit

        table = self.table(precision)
        if table is None:
            return np.inf
        found = self.frequencies(table, precision)
        counts = np.append(self.kept.counts, self.kept.escapes) if self.kept.escapes else self.kept.counts
        code = float(implied_fit.code_bits(counts, found, precision))
        return code + self.kept.escapes * self.kept.width + self.table_bits(table)

    def table_bits(self, table: ImpliedTable) -> int:
        """Bits of a table's fields, and of what comes with escapes."""
        fields = Writer()
        table.write(fields)
        if self.kept.escapes:
            fields.signed(self.kept.least)
        return 8 * fields.bytes().size + ESCAPE_BITS * (self.kept.escapes > 0)


def best_fits(histogram: Histogram, below: float) -> Iterator[Fit]:
    """Laws that may code two distinct symbols or more in fewer than ``below`` bits, with a peak at zero or without."""
    best, fit, worse = np.inf, None, 0
    for kept in _ranges(histogram):
        bits, found = _fit(kept, peak=kept.zeros > 0 and len(kept.counts) > 1)
        bits += kept.escapes * kept.width
        worse = 0 if bits < best else worse + 1
        if bits < best:
            best, fit = bits, found
        elif worse == _IN_VAIN:
            break
    if fit is None or best >= below + _DOUBT_BITS:
        return
    yield fit
    if fit.peak:
        bits, other = _fit(fit.kept, peak=False)
        if bits + fit.kept.escapes * fit.kept.width < best + _DOUBT_BITS:
            yield other


def polished(fit: Fit, precision: int) -> Fit:
    """The best of a fit, its neighbours, their neighbours and so on, by exact size; long tables stay as they are."""
    if len(fit.kept.counts) > _POLISHED_LENGTH:
        return fit
    best = fit.bits(precision)
    while True:
        near = [
            replace(fit, shape=fit.shape + shape, scale=fit.scale + scale)
            for shape, scale in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))
            if 1 <= fit.shape + shape <= MAX_SHAPE and abs(fit.scale + scale) <= MAX_SCALE
        ]
        bits, neighbour = min(((other.bits(precision), other) for other in near), key=lambda pair: pair[0])
        if bits >= best:
            return fit
        best, fit = bits, neighbour


def _ranges(histogram: Histogram) -> Iterator[Range]:
    """Ranges around the median that leave out ever more symbols, up to a fourth of them."""
    values, counts, total = histogram.values, histogram.counts, histogram.count
    middle = int(values[np.searchsorted(np.cumsum(counts), total / 2)])
    distances = np.abs(values - middle)
    order = np.argsort(distances, kind="stable")
    within = np.cumsum(counts[order])
    longest = float(_MAX_LENGTH)
    for outside in [0, *(1 << bit for bit in range(max(0, total.bit_length() - 2)))]:
        radius = distances[order[np.searchsorted(within, total - outside)]]
        inside = distances <= radius
        first, last = int(values[inside][0]), int(values[inside][-1])
        if last - first + 1 <= longest:
            dense = np.zeros(last - first + 1, np.int64)
            dense[values[inside] - first] = counts[inside]
            escaped = values[~inside]
            least, width = 0, 0
            if len(escaped):
                least = int(escaped[0])
                width = max(1, (int(escaped[-1]) - least).bit_length())
            yield Range(first, dense, total - int(dense.sum()), width, least)
            longest = _SHORTER * len(dense)


def _fit(kept: Range, *, peak: bool) -> tuple[float, Fit]:
    """The law for which the code of a range is shortest, and about how many bits that has."""
    laws = [_Laws(kept, center, peak) for center in _centers(kept)]
    law = min(laws, key=lambda law: law.scaled(_LAPLACE)[1] + 8 * (law.center != 0))
    shape, step = _LAPLACE, _LAPLACE // 2
    while step and 32 * step >= shape:
        near = [other for other in (shape, shape - step, shape + step) if 1 <= other <= MAX_SHAPE]
        best = min(near, key=lambda shape: law.scaled(shape)[1])
        if best == shape:
            step //= 2
        shape = best
    scale, bits = law.scaled(shape)
    shares = np.array([kept.escapes, kept.zeros if peak else 0])
    shares = np.append(shares, kept.total - shares.sum())
    shares = shares[shares > 0]
    bits += float((shares * np.log2(kept.total / shares)).sum())
    return bits, Fit(kept, shape, scale, law.center, peak)


class _Laws:
    """The laws with one center, for the symbols of a range that have a weight."""

    def __init__(self, kept: Range, center: int, peak: bool) -> None:
        places, self._counts, self.center = np.arange(len(kept.counts)), kept.counts, center
        if peak:
            places, self._counts = np.delete(places, -kept.low), np.delete(kept.counts, -kept.low)
        with np.errstate(divide="ignore"):
            self._logs = np.log(np.abs(places + (kept.low - center / 8)))
        self._found: dict[int, tuple[int, float]] = {}

    def scaled(self, shape: int) -> tuple[int, float]:
        """The scale that suits a shape, and about how many bits the symbols then have."""
        from rdo_kernels.cpu import implied_fit

        if shape not in self._found:
            scale, bits = implied_fit.fit_scale(self._logs, self._counts, shape, MAX_SCALE)
            self._found[shape] = int(scale), float(bits)
        return self._found[shape]


def _centers(kept: Range) -> set[int]:
    """Where the center of a law may be, in eighths: at zero, the mean or the median."""
    high, total = kept.low + len(kept.counts) - 1, int(kept.counts.sum())
    offsets = np.arange(len(kept.counts))
    mean = 8 * kept.low + round(8 * float((kept.counts * offsets).sum()) / total)
    median = 8 * (kept.low + int(np.searchsorted(np.cumsum(kept.counts), total / 2)))
    return {mean, median, 0} if kept.low <= 0 <= high else {mean, median}
