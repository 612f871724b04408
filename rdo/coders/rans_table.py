"""The part of a rANS table that gives symbols their frequencies: written out, or implied by a few integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdo.coders.implied_table import ImpliedTable
from rdo.coders.rans_model import Model
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_EXPLICIT, _CENTERED, _SHIFTED = 0, 1, 2

Frequencies = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The kept symbols, ascending, int64 [K]; their frequencies, int64 [K], or [K + 1] with that of the escape last."""


def write_frequencies(table: Writer, model: Model) -> None:
    """Append a number that says how the frequencies follow, and what they follow from."""
    if model.implied:
        table.number(_SHIFTED if model.implied.center else _CENTERED)
        model.implied.write(table)
        return
    table.number(_EXPLICIT)
    table.ascending(model.kept)
    table.numbers(model.frequencies)


def read_frequencies(table: Reader, precision: int, *, escapes: bool) -> Frequencies:
    """Read what :func:`write_frequencies` wrote. Trusts nothing; takes memory for 2**precision entries at most.

    Raises:
        CoderError: these are not frequencies >= 1 of two entries or more with the sum 2**precision.
    """
    kind = table.number()
    if kind == _EXPLICIT:
        return read_explicit(table, precision, escapes=escapes)
    if kind not in (_CENTERED, _SHIFTED):
        raise CoderError(f"frequencies of kind {kind}; 0 (written out) and 1 and 2 (implied) are known")
    implied = ImpliedTable.read(table, centered=kind == _CENTERED, escapes=escapes)
    frequencies = implied.frequencies(precision)
    return implied.values, frequencies


def read_explicit(table: Reader, precision: int, *, escapes: bool) -> Frequencies:
    """Read frequencies that are written out, as all were before format version 3."""
    values = table.ascending(1 << precision)
    frequencies = table.numbers(len(values) + escapes)
    check_frequencies(frequencies, precision)
    return values, frequencies


def check_frequencies(frequencies: NDArray[np.int64], precision: int) -> None:
    """Raise CoderError unless these are frequencies of a table."""
    slots, most = 1 << precision, int(frequencies.max(initial=0))
    # The largest is compared too: a sum of forged ones may wrap around.
    if len(frequencies) < 2 or int(frequencies.min()) < 1 or most > slots or int(frequencies.sum()) != slots:
        raise CoderError("the frequencies of the table do not fill it")
