"""Streams of range asymmetric numeral systems in segments: the loops that suit the lanes and the machine.

A segment is a stream of its own, with the states and the words of :mod:`rdo_kernels.cpu.rans`; all share one table.
Symbols are cut into segments of ``size``, the last of which may be shorter. The interpreter's lock is released, so that
threads can work on runs of whole segments: give them slices of the arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdo_kernels.cpu import lanes, rans, rans_lanes
from rdo_kernels.cpu.rans import LOW

__all__ = ["LOW", "decode", "encode"]

Int64s = NDArray[np.int64]
_PRECISIONS = range(8, 17)


def encode(
    indices: NDArray[np.uint16],
    frequencies: Int64s,
    precision: int,
    size: int,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
) -> Int64s:
    """Encode ``indices`` [n] into ``frequencies`` [K >= 2], which are at least 1 and sum to 2^precision (8 to 16).

    That every index is below K is not checked.

    Fills ``states`` [segments, lanes]; the words of segment i are ``words[begins[i] : min((i + 1) * size, n)]``, where
    ``begins`` [segments] is what it returns. ``words`` has the length of ``indices``.

    Raises:
        ValueError: the arrays do not fit together.
    """
    starts = _starts(frequencies, precision)
    _check_segments(indices.size, size, states, len(states))
    if words.size != indices.size:
        raise ValueError(f"{indices.size} symbols need as many words, got {words.size}")
    table = frequencies.astype(np.uint32), starts.astype(np.uint32), 1.0 / frequencies
    vectors = _vectors(states)
    looked_up = rans_lanes.encoding_tables(frequencies, starts, precision) if vectors else None
    begins = np.arange(len(states)) * size
    for segment, begin in enumerate(begins):
        part, room = indices[begin : begin + size], words[begin : begin + size]
        if vectors:
            begins[segment] += rans_lanes.encode(part, *table, looked_up, precision, states[segment], room)
        else:
            begins[segment] += rans.encode(part, *table, precision, states[segment], room)
    return begins


def decode(
    words: NDArray[np.uint16],
    begins: Int64s,
    ends: Int64s,
    states: NDArray[np.uint32],
    values: NDArray[np.int32],
    frequencies: Int64s,
    precision: int,
    size: int,
    out: NDArray[np.int32],
) -> Int64s:
    """Decode into ``out`` [n]: the symbol with frequency ``frequencies[k]`` is ``values[k]``. Trusts nothing.

    Segments are decoded two at a time, which takes little longer than one.

    Segment i has the words ``words[begins[i] : ends[i]]``; each may begin and end anywhere in ``words``, so that these
    can be a view of a whole payload. Overwrites ``states`` [segments, lanes] with those at the end, which must all be
    ``LOW``. Returns where the words that each segment used end: int64 [segments], if all is well ``ends``, else
    anything, and so is what ``out`` holds.

    Raises:
        ValueError: the arrays do not fit together.
    """
    starts = _starts(frequencies, precision)
    _check_segments(out.size, size, states, len(begins))
    if len(ends) != len(begins) or len(values) != len(frequencies):
        raise ValueError("every segment needs a begin and an end, and every value a frequency")
    if len(begins) and (begins.min() < 0 or (begins > ends).any() or ends.max() > words.size):
        raise ValueError(f"a segment begins or ends outside of the {words.size} words")
    if _vectors(states):
        tables = rans_lanes.decoding_tables(values, frequencies, starts)
        positions = begins.astype(np.int64)
        # Arrays that cannot be written would be compiled for a second time.
        words = words if words.flags.writeable else words.copy()
        rans_lanes.decode(words, positions, states, tables, values, frequencies, starts, precision, size, out)
        return positions
    steps = (np.repeat(frequencies - 1, frequencies) << 16) + np.arange(1 << precision)
    steps -= np.repeat(starts, frequencies)
    table = np.repeat(values, frequencies), steps.astype(np.uint32), precision
    positions = begins.astype(np.int64)
    for segment, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        part = out[segment * size : (segment + 1) * size]
        used = rans.decode(words[begin:end], states[segment], *table, part)
        positions[segment] = begin + used if used >= 0 else -1
    return positions


def _starts(frequencies: Int64s, precision: int) -> Int64s:
    if precision not in _PRECISIONS:
        raise ValueError(f"the precision is 8 to 16 bits, got {precision}")
    slots = 1 << precision
    if len(frequencies) < 2 or not 1 <= frequencies.min() <= frequencies.max() < slots or frequencies.sum() != slots:
        raise ValueError(f"two frequencies or more, each at least 1, must sum to 2^{precision}")
    starts: Int64s = np.cumsum(frequencies) - frequencies
    return starts


def _check_segments(count: int, size: int, states: NDArray[np.uint32], segments: int) -> None:
    if size < 1 or states.ndim != 2 or not len(states) == segments == -(-count // size):
        raise ValueError(f"{count} symbols in segments of {size} do not fit {segments} and states {states.shape}")


def _vectors(states: NDArray[np.uint32]) -> bool:
    return states.shape[1] == rans_lanes.LANES and lanes.available()
