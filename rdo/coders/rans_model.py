"""The table of a rANS stream: which symbols are in it, with which frequencies, and which escape from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Histogram
from rdo.coders.implied_fit import ESCAPE_BITS, best_fits, polished
from rdo.coders.implied_table import LEAST_BYTES, ImpliedTable
from rdo.coders.varint import Writer

PRECISIONS = range(8, 17)
_SLACK = 1.0002
"""How much larger a stream may get for a smaller table, which is decoded faster."""
_CLOSE = 1.002
"""A stream this close to the entropy has no need of a table that a law implies."""
_TYPICAL_PRECISION = 13
_ROUNDING = 0.0054
"""Bits a symbol lost with 16 bits of precision; with each bit less a fourth of it. A symbol takes a state x with
q = floor(x / f) >= 2^(16 - p) to about q 2^p. As the density of x is like 1 / x, the fraction of x / f is a little
uneven, which costs some 1 / (12 q^2) nats."""


@dataclass(frozen=True)
class Model:
    """What is needed to code a symbol.

    Attributes:
        precision: the frequencies sum to 2**precision.
        kept: the symbols in the table, int64 [K], ascending, K > 0.
        frequencies: int64 [K], or [K + 1] with that of the escape at the end.
        escapes: number of escaped symbols.
        width: bits of an escaped symbol less ``low``; 0 if there are none.
        low: the smallest escaped symbol.
        payload_bits: information in the payload, what lanes add to it aside.
        table_bits: length of the table but for what comes with any, the number of lanes for instance.
        implied: what the frequencies follow from; None if they are written out.
    """

    precision: int
    kept: NDArray[np.int64]
    frequencies: NDArray[np.int64]
    escapes: int
    width: int
    low: int
    payload_bits: float
    table_bits: float = 0.0
    implied: ImpliedTable | None = None


@dataclass(frozen=True)
class _Choice:
    """A set of kept symbols; ``counts`` has that of the escape at the end, if there are escapes."""

    kept: NDArray[np.int64]
    counts: NDArray[np.int64]
    escapes: int
    width: int
    low: int
    value_bits: int
    """Length of the kept symbols in the table, and of what else comes with escapes."""

    @property
    def least(self) -> float:
        """Bits that no frequencies can undercut: a byte for each, and an ideal code."""
        return self.fixed_bits + 8 * len(self.counts) + self.code_bits(np.log2(self.counts / self.counts.sum()))

    @property
    def fixed_bits(self) -> int:
        return self.escapes * self.width + self.value_bits

    def code_bits(self, log_shares: NDArray[np.float64]) -> float:
        """Bits of the code for shares of the slots given by their binary logarithms."""
        return -float((self.counts * log_shares).sum())


def best_model(histogram: Histogram) -> Model:
    """The model of least total size for two distinct symbols or more, or a smaller precision that comes close to it."""
    explicit = explicit_model(histogram)
    size, entropy = explicit.payload_bits + explicit.table_bits, histogram.entropy_bits()
    # No order-0 code is shorter than the entropy. To look for a law takes longer than to encode the symbols.
    if size <= max(entropy + 8 * LEAST_BYTES, _CLOSE * entropy):
        return explicit
    implied = implied_model(histogram, size)
    return implied if implied and implied.payload_bits + implied.table_bits < size else explicit


def explicit_model(histogram: Histogram) -> Model:
    """The best model whose frequencies are written out."""
    from rdo_kernels.cpu import frequencies

    def size(choice: _Choice, precision: int) -> float:
        code = frequencies.cost(choice.counts, precision) + _rounding_bits(histogram, precision)
        return choice.fixed_bits + float(code)

    # What escapes is chosen at one precision, and then the precision: all pairs would take many times as long.
    chosen, best = None, np.inf
    for choice in sorted(_choices(histogram), key=lambda choice: choice.least):
        if choice.least > best:
            break
        found = size(choice, max(_TYPICAL_PRECISION, (len(choice.counts) - 1).bit_length()))
        if found < best:
            chosen, best = choice, found
    assert chosen is not None
    sizes = {precision: size(chosen, precision) for precision in PRECISIONS if len(chosen.counts) <= 1 << precision}
    precision = next(p for p in sizes if sizes[p] <= _SLACK * min(sizes.values()))
    kept = frequencies.normalise(chosen.counts, precision)
    payload_bits = chosen.escapes * chosen.width + chosen.code_bits(np.log2(kept) - precision)
    payload_bits += _rounding_bits(histogram, precision)
    escaped = chosen.escapes, chosen.width, chosen.low
    return Model(precision, chosen.kept, kept, *escaped, payload_bits, sizes[precision] - payload_bits)


def implied_model(histogram: Histogram, below: float = np.inf) -> Model | None:
    """The best model whose frequencies are implied, if there is one that may take fewer than ``below`` bits."""
    tried = [
        (precision, fit.bits(precision) + _rounding_bits(histogram, precision), fit)
        for fit in best_fits(histogram, below)
        for precision in PRECISIONS
    ]
    best = min((size for _, size, _ in tried), default=np.inf)
    if best == np.inf:
        return None
    precision, _, fit = min((t for t in tried if t[1] <= _SLACK * best), key=lambda t: t[:2])
    fit = polished(fit, precision)
    table = fit.table(precision)
    assert table is not None
    kept, table_bits = fit.kept, fit.table_bits(table)
    payload_bits = fit.bits(precision) - table_bits + _rounding_bits(histogram, precision)
    escaped = kept.escapes, kept.width, kept.least
    return Model(precision, table.values, fit.frequencies(table, precision), *escaped, payload_bits, table_bits, table)


def _rounding_bits(histogram: Histogram, precision: int) -> float:
    return _ROUNDING * 4.0 ** (precision - 16) * histogram.count


def _choices(histogram: Histogram) -> Iterator[_Choice]:
    """Sets of kept symbols: those at least as frequent as a threshold, and the most frequent symbol alone."""
    values, counts = histogram.values, histogram.counts
    most, before = int(counts.max()), -1
    thresholds = sorted({round(2 ** (step / 2)) for step in range(2 * most.bit_length())})
    for kept in [*(counts >= threshold for threshold in thresholds), np.arange(len(counts)) == int(counts.argmax())]:
        number = int(kept.sum())
        if number in (before, 0) or number + (number < len(kept)) > 1 << PRECISIONS[-1]:
            continue
        before = number
        table = Writer()
        table.ascending(values[kept])
        value_bits = 8 * table.bytes().size
        if number == len(kept):
            yield _Choice(values, counts, 0, 0, 0, value_bits)
            continue
        escaped = values[~kept]
        low = int(escaped[0])
        width = max(1, (int(escaped[-1]) - low).bit_length())
        escapes = histogram.count - int(counts[kept].sum())
        table.signed(low)
        value_bits = 8 * table.bytes().size + ESCAPE_BITS
        yield _Choice(values[kept], np.append(counts[kept], escapes), escapes, width, low, value_bits)
