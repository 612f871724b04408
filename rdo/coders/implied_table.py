"""Frequencies that follow from a few integers: those of a generalized Gaussian, and perhaps a peak at zero.

docs/coders.md, "Implied frequencies", says how to find them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import MAX_SYMBOL
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

MAX_SHAPE = 256
MAX_SCALE = 2048
LEAST_BYTES = 5
"""The fields take so many bytes or more."""


@dataclass(frozen=True)
class ImpliedTable:
    """Symbols from ``low`` on; symbol k has a weight of ``2^-(|k - center / 8| / 2^(scale / 32))^(shape / 64)``.

    Attributes:
        low: the smallest symbol.
        length: number of symbols.
        shape: 1 to 256.
        scale: -2048 to 2048.
        center: within the symbols, in eighths.
        zero: frequency of the symbol 0, which has no weight then; 0: as its weight says.
        escape: frequency of the escape, which comes last; 0: there is none.

    Raises:
        CoderError: one of them is out of range, or no symbol is left to have a weight.
    """

    low: int
    length: int
    shape: int
    scale: int
    center: int
    zero: int
    escape: int

    def __post_init__(self) -> None:
        high = self.low + self.length - 1
        if not (1 <= self.length <= 1 << 16 and -MAX_SYMBOL <= self.low <= high <= MAX_SYMBOL):
            raise CoderError(f"an implied table of {self.length} symbols from {self.low}; 2^16 within +-2^30 can be")
        if not (1 <= self.shape <= MAX_SHAPE and -MAX_SCALE <= self.scale <= MAX_SCALE):
            raise CoderError(f"an implied table has shape {self.shape} and scale {self.scale}, which is out of range")
        if not 8 * self.low <= self.center <= 8 * high:
            raise CoderError(f"an implied table of symbols {self.low} to {high} has its center at {self.center}/8")
        if self.zero and not self.low <= 0 <= high:
            raise CoderError(f"an implied table has a frequency of 0 and symbols {self.low} to {high}")
        if self.zero < 0 or self.escape < 0 or self.weighted < 1 or self.length + (self.escape > 0) < 2:
            raise CoderError("an implied table has fewer than two entries or none with a weight")

    @property
    def weighted(self) -> int:
        """Number of symbols with a weight."""
        return self.length - (self.zero > 0)

    @property
    def values(self) -> NDArray[np.int64]:
        """The symbols, int64 [length]."""
        return np.arange(self.low, self.low + self.length)

    def frequencies(self, precision: int) -> NDArray[np.int64]:
        """One for each symbol and, last, that of the escape if there is one: int64, >= 1, their sum 2**precision.

        Raises:
            CoderError: so many slots are too few.
        """
        return self.divide(self.weights(), precision)

    def weights(self) -> NDArray[np.int64]:
        """The symbols' weights, int64 [length], 0 to 2^20; -1 for a symbol that has none."""
        from rdo_kernels.cpu import implied

        found = np.empty(self.length, np.int64)
        implied.weights(self.low, self.center, self.shape, self.scale, self.zero > 0, found)
        return found

    def divide(self, weights: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
        """:meth:`frequencies` from what :meth:`weights` gives."""
        from rdo_kernels.cpu import implied

        slots = (1 << precision) - self.zero - self.escape
        if slots < self.weighted:
            raise CoderError(f"{slots} slots are left for {self.weighted} symbols of an implied table")
        found = np.empty(self.length + (self.escape > 0), np.int64)
        implied.share(weights, slots, found[: self.length])
        if self.zero:
            found[-self.low] = self.zero
        if self.escape:
            found[-1] = self.escape
        return found

    def write(self, table: Writer) -> None:
        """Append the fields to a table; the center only if that is not at zero."""
        table.signed(self.low)
        table.number(self.length - 1)
        table.number(self.shape)
        table.signed(self.scale)
        if self.center:
            table.signed(self.center)
        table.number(self.zero)
        if self.escape:
            table.number(self.escape)

    @classmethod
    def read(cls, table: Reader, *, centered: bool, escapes: bool) -> ImpliedTable:
        """Read the fields: without a center if that is at zero, with the escape's frequency if there are escapes."""
        low, length, shape, scale = table.signed(), table.number() + 1, table.number(), table.signed()
        center = 0 if centered else table.signed()
        zero = table.number()
        escape = table.number() if escapes else 0
        if escapes and not escape:
            raise CoderError("the escape of an implied table has no slot")
        return cls(low, length, shape, scale, center, zero, escape)
