"""Passes over integer symbols before and after an entropy coder, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, njit, uint16, uint32

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}
_TABLES = 4
"""Equal symbols in a row would wait for each other's count: neighbours count in tables of their own."""
_RUN = 256


@njit(**_OPTIONS)
def bounds(symbols):  # type: ignore[no-untyped-def]
    """The smallest and the largest of int32 symbols [n >= 1]."""
    low, high = int32(symbols[0]), int32(symbols[0])
    for i in range(symbols.size):
        low = int32(min(low, int32(symbols[i])))
        high = int32(max(high, int32(symbols[i])))
    return low, high


@njit(**_OPTIONS)
def histogram(symbols, low, counts):  # type: ignore[no-untyped-def]
    """Add how often each of ``low``, ``low + 1``, ... occurs to ``counts`` (int64), which must reach to the largest."""
    parts = np.zeros((_TABLES, counts.size), np.int64)
    whole = symbols.size - symbols.size % _TABLES
    for i in range(0, whole, _TABLES):
        for part in range(_TABLES):
            parts[part, np.int64(symbols[i + part]) - low] += 1
    for i in range(whole, symbols.size):
        counts[np.int64(symbols[i]) - low] += 1
    for part in range(_TABLES):
        for i in range(counts.size):
            counts[i] += parts[part, i]


@njit(**_OPTIONS)
def _count(run, value):  # type: ignore[no-untyped-def]
    """How often a value occurs in fewer than 2^16 integers, sixteen or more at a time."""
    found = np.uint16(0)
    for i in range(run.size):
        found = np.uint16(found + np.uint16(run[i] == value))
    return np.int64(found)


@njit(**_OPTIONS)
def index(symbols, low, places, indices):  # type: ignore[no-untyped-def]
    """Write ``places`` (uint16) of int32 symbols to ``indices``: the first is that of ``low``, the last any other's.

    Returns how many of the indices are that last one.
    """
    others = np.uint64(places.size - 1)
    escapes = 0
    for begin in range(0, symbols.size, _RUN):
        run, found = symbols[begin : begin + _RUN], indices[begin : begin + _RUN]
        for i in range(run.size):
            found[i] = places[min(np.uint64(np.int64(run[i]) - low), others)]
        escapes += _count(found, places[others])
    return escapes


@njit(**_OPTIONS)
def index_run(symbols, low, others, indices):  # type: ignore[no-untyped-def]
    """As :func:`index` for places that count up from that of ``low``: how far a symbol is above it, or ``others``.

    Symbols and ``low`` are within +-2**30; ``others`` is below 2**16.
    """
    bound, escapes = uint32(others), 0
    for begin in range(0, symbols.size, _RUN):
        run, found = symbols[begin : begin + _RUN], indices[begin : begin + _RUN]
        for i in range(run.size):
            found[i] = uint16(min(uint32(int32(run[i]) - int32(low)), bound))
        escapes += _count(found, uint16(others))
    return escapes


@njit(**_OPTIONS)
def take_escaped(symbols, indices, escape, escaped):  # type: ignore[no-untyped-def]
    """Copy the symbols whose index is ``escape`` (uint16) to ``escaped`` (int32), which has room for exactly these."""
    taken = 0
    for begin in range(0, symbols.size, _RUN):
        run, found = symbols[begin : begin + _RUN], indices[begin : begin + _RUN]
        if _count(found, escape):
            for i in range(run.size):
                if found[i] == escape:
                    escaped[taken] = run[i]
                    taken += 1


@njit(**_OPTIONS)
def put_escaped(symbols, marker, escaped):  # type: ignore[no-untyped-def]
    """Replace each ``marker`` (int32) among int32 symbols by the next of ``escaped``; returns how many there were."""
    put = 0
    for begin in range(0, symbols.size, _RUN):
        run = symbols[begin : begin + _RUN]
        if _count(run, marker):
            for i in range(run.size):
                if run[i] == marker:
                    if put < escaped.size:
                        run[i] = escaped[put]
                    put += 1
    return put
