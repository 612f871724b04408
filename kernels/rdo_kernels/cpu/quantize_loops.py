"""Quantisation on a CPU, compiled by numba: weights to symbols and their histogram in one pass, and back.

Weights are divided, rounded and narrowed in runs that stay in the first-level cache, in vector instructions. The
histogram is vectorised too where symbols are few: 64 of them are compared at once with each of the 15 around zero, and
only others are counted one by one.

Legend: rows of ``chunks`` are those of :func:`rdo_kernels.chunks.quantization_table` and, last, the type of the
weights: 0 float32, 1 bfloat16, 2 float16. B is the largest symbol with a bin of its own; a histogram has 2B + 2 bins,
the last for all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, float32, int8, int16, int32, njit, types, uint32, uint64  # type: ignore[attr-defined]

from rdo_kernels.chunks import ADDRESSES, COUNT, OFFSET, ROW, STEPS, TENSOR
from rdo_kernels.cpu.intrinsics import (
    bits_of,
    fetch_add,
    float32_at,
    float_of,
    int8_at,
    int16_at,
    int32_at,
    int64_at,
    mask_equal,
    ones,
    trailing_zeros,
)

# Nothing may be reordered or approximated: symbols are those of an IEEE division, to the bit.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}

_FLOAT32, _BFLOAT16 = range(2)
_KIND = OFFSET + 1
_RUN = 1024
_NEAR = 7
"""Symbols up to it are counted by comparison: 15 comparisons of 64 symbols cost a fraction of 64 increments."""
_FAR = 127
"""Stands for all other symbols in a comparison."""
_PARTS = 4
"""Histograms that neighbours are counted in by turns: the same bin twice in a row would wait for its store."""


@njit(**_OPTIONS)
def _widen(address, kind, out):  # type: ignore[no-untyped-def]
    """Convert 16-bit weights to float32, exactly."""
    halves = carray(int16_at(address), out.size)
    if kind == _BFLOAT16:
        for i in range(out.size):
            out[i] = float_of(int32(int32(halves[i]) << int32(16)))
    else:
        for i in range(out.size):
            half = int32(halves[i])
            magnitude = int32(half & int32(0x7FFF))
            special = int32(0x38000000) if magnitude >= int32(0x7C00) else int32(0)  # infinity and NaN
            normal = float_of(int32(int32(int32(magnitude << int32(13)) + int32(0x38000000)) + special))
            value = normal if magnitude >= int32(0x400) else float32(magnitude) * float32(2.0**-24)
            out[i] = -value if half < int32(0) else value


@njit(**_OPTIONS)
def _narrow(values, address, kind):  # type: ignore[no-untyped-def]
    """Round float32 to 16 bits, to nearest, ties to even."""
    halves = carray(int16_at(address), values.size)
    if kind == _BFLOAT16:
        for i in range(values.size):
            bits = bits_of(values[i])
            odd = int32(int32(bits >> int32(16)) & int32(1))
            rounded = int32(int32(bits + int32(int32(0x7FFF) + odd)) >> int32(16))
            halves[i] = int16(rounded if values[i] == values[i] else int32(0x7FC0))
    else:
        for i in range(values.size):
            magnitude = abs(values[i])
            bits = bits_of(magnitude)
            odd = int32(int32(bits >> int32(13)) & int32(1))
            normal = int32(int32(int32(bits - int32(0x38000000)) + int32(int32(0xFFF) + odd)) >> int32(13))
            # Adding 0.5 leaves what float16 keeps of a number below its normal ones, rounded, in the lowest bits.
            small = int32(bits_of(magnitude + float32(0.5)) - int32(0x3F000000))
            rounded = normal if magnitude >= float32(2.0**-14) else small
            rounded = rounded if magnitude < float32(65520.0) else int32(0x7C00)
            rounded = rounded if magnitude == magnitude else int32(0x7E00)
            sign = int32(int32(bits_of(values[i]) >> int32(16)) & int32(-0x8000))
            halves[i] = int16(rounded | sign)


@njit(**_OPTIONS)
def _round(weights, step, zone, limit, symbols):  # type: ignore[no-untyped-def]
    """Fill ``symbols`` (int32) and return how many weights have none: NaN, or more than ``limit`` steps from zero."""
    lost = int32(0)
    for i in range(weights.size):
        scaled = weights[i] / step
        magnitude = abs(scaled)
        within = magnitude <= limit
        symbols[i] = int32(np.rint(scaled)) if within and magnitude >= zone else int32(0)
        lost = int32(lost + int32(not within))
    return lost


@njit(**_OPTIONS)
def _store(symbols, address, width):  # type: ignore[no-untyped-def]
    if width == 1:
        small = carray(int8_at(address), symbols.size)
        for i in range(symbols.size):
            small[i] = int8(symbols[i])
    elif width == 2:
        middle = carray(int16_at(address), symbols.size)
        for i in range(symbols.size):
            middle[i] = int16(symbols[i])
    else:
        large = carray(int32_at(address), symbols.size)
        for i in range(symbols.size):
            large[i] = symbols[i]


@njit(**_OPTIONS)
def _load(address, width, symbols):  # type: ignore[no-untyped-def]
    if width == 1:
        small = carray(int8_at(address), symbols.size)
        for i in range(symbols.size):
            symbols[i] = int32(small[i])
    elif width == 2:
        middle = carray(int16_at(address), symbols.size)
        for i in range(symbols.size):
            symbols[i] = int32(middle[i])
    else:
        large = carray(int32_at(address), symbols.size)
        for i in range(symbols.size):
            symbols[i] = large[i]


@njit(**_OPTIONS)
def _count_near(symbols, small, bound, parts):  # type: ignore[no-untyped-def]
    """Count a full run of symbols mostly near zero; returns how many were not. ``small`` is room for them in int8."""
    for i in range(_RUN):
        symbol = symbols[i]
        small[i] = int8(symbol if abs(symbol) <= int32(_NEAR) else int32(_FAR))
    begin = small.ctypes.data
    for symbol in range(-_NEAR, _NEAR + 1):
        found = 0
        for start in range(0, _RUN, 64):
            found += ones(mask_equal(begin + start, int8(symbol)))
        parts[0, uint32(symbol + bound)] += found
    far = 0
    for start in range(0, _RUN, 64):
        mask = mask_equal(begin + start, int8(_FAR))
        while mask != uint64(0):
            symbol = symbols[start + trailing_zeros(mask)]
            parts[1, uint32(symbol + bound if abs(symbol) <= bound else 2 * bound + 1)] += 1
            mask &= mask - uint64(1)
            far += 1
    return far


@njit(**_OPTIONS)
def _count_any(symbols, bins, bound, parts):  # type: ignore[no-untyped-def]
    """Count symbols; ``bins`` (uint32) is room for as many. Returns how many are not near zero."""
    far = int32(0)
    for i in range(symbols.size):
        magnitude = int32(abs(symbols[i]))
        shifted = int32(symbols[i] + int32(bound))
        bins[i] = uint32(shifted if magnitude <= int32(bound) else int32(2 * bound + 1))
        far = int32(far + int32(magnitude > int32(_NEAR)))
    whole = symbols.size // _PARTS * _PARTS
    for i in range(0, whole, _PARTS):
        parts[0, bins[i]] += 1
        parts[1, bins[i + 1]] += 1
        parts[2, bins[i + 2]] += 1
        parts[3, bins[i + 3]] += 1
    for i in range(whole, symbols.size):
        parts[0, bins[i]] += 1
    return far


@njit(**_OPTIONS)
def _add_counts(parts, lost, bound, counts):  # type: ignore[no-untyped-def]
    """Move what was counted into the tensor's ``counts``, which other threads add to as well."""
    begin = counts.ctypes.data
    for place in range(counts.size):
        total = np.int64(parts[0, place]) + parts[1, place] + parts[2, place] + parts[3, place]
        if place == bound:
            total -= lost  # they are stored, and were counted, as 0
        elif place == counts.size - 1:
            total += lost
        if total != 0:
            fetch_add(begin + 8 * place, total)
    parts[:] = 0


@njit(**_OPTIONS)
def quantize(chunk, width, bound, zone, limit, counts, lost, floats, symbols, bins, small, parts):  # type: ignore[no-untyped-def]
    """Quantise one chunk; add to its tensor's ``counts`` (int64 [2B + 2], or empty) and ``lost`` (int64 [1]).

    ``floats`` (float32), ``symbols`` (int32), ``bins`` (uint32) and ``small`` (int8) are room for a run; ``parts``
    (int32 [4, 2B + 2]) must be zeros, and is afterwards.
    """
    count, row, used, kind = chunk[COUNT], chunk[ROW], chunk[OFFSET], chunk[_KIND]
    weights, out = chunk[ADDRESSES], chunk[ADDRESSES + 1]
    weight_width = 4 if kind == _FLOAT32 else 2
    steps = carray(float32_at(chunk[STEPS]), (used + count - 1) // row + 1)
    step = 0
    missing = 0
    near = True
    for begin in range(0, count, _RUN):
        size = min(_RUN, count - begin)
        if kind == _FLOAT32:
            values = carray(float32_at(weights + 4 * begin), size)
        else:
            values = floats[:size]
            _widen(weights + weight_width * begin, kind, values)
        done = 0
        while done < size:  # rows end anywhere
            end = min(size, done + row - used)
            missing += _round(values[done:end], steps[step], zone, limit, symbols[done:end])
            used += end - done
            done = end
            if used == row:
                step, used = step + 1, 0
        _store(symbols[:size], out + width * begin, width)
        if counts.size > 0:
            if near and size == _RUN:
                far = _count_near(symbols, small, bound, parts)
            else:
                far = _count_any(symbols[:size], bins, bound, parts)
            near = 4 * far <= size
    if counts.size > 0:
        _add_counts(parts, missing, bound, counts)
    if missing > 0:
        fetch_add(lost.ctypes.data, missing)


@njit(**_OPTIONS)
def _multiply(symbols, step, values):  # type: ignore[no-untyped-def]
    for i in range(symbols.size):
        values[i] = float32(symbols[i]) * step


@njit(**_OPTIONS)
def dequantize(chunk, width, floats, symbols):  # type: ignore[no-untyped-def]
    """Multiply one chunk's symbols by their steps in float32 and round to the weights' type."""
    count, row, used, kind = chunk[COUNT], chunk[ROW], chunk[OFFSET], chunk[_KIND]
    steps = carray(float32_at(chunk[STEPS]), (used + count - 1) // row + 1)
    step = 0
    for begin in range(0, count, _RUN):
        size = min(_RUN, count - begin)
        _load(chunk[ADDRESSES + 1] + width * begin, width, symbols[:size])
        values = carray(float32_at(chunk[ADDRESSES] + 4 * begin), size) if kind == _FLOAT32 else floats[:size]
        done = 0
        while done < size:
            end = min(size, done + row - used)
            _multiply(symbols[done:end], steps[step], values[done:end])
            used += end - done
            done = end
            if used == row:
                step, used = step + 1, 0
        if kind != _FLOAT32:
            _narrow(values, chunk[ADDRESSES] + 2 * begin, kind)


@njit(**_OPTIONS)
def dequantize_part(symbols, steps, row, at, weights, kind):  # type: ignore[no-untyped-def]
    """Write the weights of int32 symbols, of which the first is number ``at`` of its tensor, to an address."""
    chunk = np.array([symbols.size, 0, weights, 0, 0, row, at % row, kind])
    chunk[ADDRESSES + 1], chunk[STEPS] = symbols.ctypes.data, steps.ctypes.data + 4 * (at // row)
    dequantize(chunk, 4, np.empty(_RUN, np.float32), np.empty(_RUN, np.int32))


@cfunc(types.void(types.CPointer(types.int64)), cache=True)  # type: ignore[no-untyped-call]
def work(pointer):  # type: ignore[no-untyped-def]
    """One thread's share of a job: it takes the next chunk until none is left.

    A job is (next row, rows, columns, whether to dequantise, bytes of a symbol, B, whether to count, tensors, bits of
    the zero cell's half-width in float32, largest symbol, addresses of chunks, counts and lost) in int64.
    """
    job = carray(pointer, 13)
    rows, width, bound, counted, tensors = job[1], job[4], job[5], job[6], job[7]
    zone, limit = float_of(int32(job[8])), float32(job[9])
    chunks = carray(int64_at(job[10]), (rows, job[2]))
    counts = carray(int64_at(job[11]), (tensors, (2 * bound + 2) * counted))
    lost = carray(int64_at(job[12]), tensors)
    floats, symbols = np.empty(_RUN, np.float32), np.empty(_RUN, np.int32)
    bins, small = np.empty(_RUN, np.uint32), np.empty(_RUN, np.int8)
    parts = np.zeros((_PARTS, (2 * bound + 2) * counted), np.int32)
    start = job.ctypes.data
    while True:
        index = fetch_add(start, 1)
        if index >= rows:
            break
        chunk = chunks[index]
        tensor = chunk[TENSOR]
        if job[3] != 0:
            dequantize(chunk, width, floats, symbols)
        else:
            quantize(
                chunk,
                width,
                bound,
                zone,
                limit,
                counts[tensor],
                lost[tensor : tensor + 1],
                floats,
                symbols,
                bins,
                small,
                parts,
            )
