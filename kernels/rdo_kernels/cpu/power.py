"""Power laws on a CPU, compiled by numba: rate ``c * (|w| + eps)^nu`` and its slope, in one pass over float32 weights.

Each function walks rows of a table of chunks and writes the sums of each chunk, so that results depend neither on the
number of threads nor on where the weights lie.

Legend: a chunk is (address of the weights, address of another tensor or 0, count, tensor) in int64. A law is
(nu, c, eps, scale, factor, floor) in float64, one row for each tensor: slopes are multiplied by ``scale``, and divided
by ``sqrt(other) * factor + floor`` in the preconditioned step. ``bits`` is float64, one for each chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, float32, int32, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

# Sums may be reordered into vector lanes, always in the same way. NaN keeps its meaning.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
_RUN = 512
"""Weights whose float32 lanes are summed before they enter a float64 sum."""


def _cast(signature: Any, instruction: str) -> Any:
    """A compiled function that only changes the type of its argument."""

    def typed(typing_context: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(arguments[0], context.get_value_type(signature.return_type))

        return signature, build

    return intrinsic(typed)


_pointer = _cast(types.CPointer(types.float32)(types.int64), "inttoptr")  # type: ignore[no-untyped-call]
_bits_of = _cast(types.int32(types.float32), "bitcast")
_float_of = _cast(types.float32(types.int32), "bitcast")


@njit(**_OPTIONS)
def _log2(x):  # type: ignore[no-untyped-def]
    """log2 of a positive normal float32, to a few units in the last place: 2 artanh((m - 1) / (m + 1)) / ln 2 + e."""
    bits = _bits_of(x)
    exponent = (bits - int32(0x3F3504F3)) >> int32(23)  # so that m is in [sqrt(1/2), sqrt(2))
    m = _float_of(bits - (exponent << int32(23)))
    s = (m - float32(1.0)) / (m + float32(1.0))
    t = s * s
    series = float32(0.32059890) * t + float32(0.41219858)
    series = series * t + float32(0.57707802)
    series = series * t + float32(0.96179669)
    series = series * t + float32(2.88539008)
    return s * series + float32(exponent)


@njit(**_OPTIONS)
def _exp2(x):  # type: ignore[no-untyped-def]
    """2^x in float32, 0 below 2^-126 and infinity from 2^127.5: Taylor's series around the nearest integer."""
    x = min(max(x, float32(-127.0)), float32(128.0))
    shifted = x + float32(12582912.0)  # 1.5 * 2^23: the sum's low bits are the rounded x
    k = _bits_of(shifted) - int32(0x4B400000)
    f = (x - float32(k)) * float32(0.69314718)
    series = float32(1.0 / 5040.0) * f + float32(1.0 / 720.0)
    series = series * f + float32(1.0 / 120.0)
    series = series * f + float32(1.0 / 24.0)
    series = series * f + float32(1.0 / 6.0)
    series = series * f + float32(0.5)
    series = series * f + float32(1.0)
    series = series * f + float32(1.0)
    return series * _float_of((k + int32(127)) << int32(23))


@njit(**_OPTIONS)
def _sign(x):  # type: ignore[no-untyped-def]
    """-1, 0 or 1, without a branch; NaN for NaN."""
    return x if x != x else float32(x > float32(0.0)) - float32(x < float32(0.0))


@njit(**_OPTIONS)
def _powers(weights, law, powers):  # type: ignore[no-untyped-def]
    """Fill ``powers`` with ``(|w| + eps)^(nu - 1)`` and return the sum of the rates, ``c * (|w| + eps)^nu``."""
    exponent, factor, eps = float32(law[0] - 1.0), float32(law[1]), float32(law[2])
    if exponent == float32(0.0):
        for i in range(weights.size):
            powers[i] = float32(1.0)
    elif exponent == float32(1.0):
        for i in range(weights.size):
            powers[i] = abs(weights[i]) + eps
    else:
        for i in range(weights.size):
            magnitude = abs(weights[i]) + eps
            powers[i] = _exp2(exponent * _log2(magnitude))
    bits = float32(0.0)
    for i in range(weights.size):
        bits += powers[i] * (abs(weights[i]) + eps) * factor
    return bits


@njit(**_OPTIONS)
def moments(chunks, sums):  # type: ignore[no-untyped-def]
    """Fill ``sums`` (float64 [chunks, 4]) with sum |w|, sum w^2, zeros and max |w|; NaN and infinity propagate."""
    for row in range(chunks.shape[0]):
        weights = carray(_pointer(chunks[row, 0]), chunks[row, 2])
        sum_abs = 0.0
        sum_sq = 0.0
        zeros = 0
        largest = int32(0)  # of the bits of |w|, which are ordered as |w| is, with NaN above infinity
        for i in range(weights.size):
            magnitude = abs(weights[i])
            value = np.float64(magnitude)
            sum_abs += value
            sum_sq += value * value
            zeros += int(magnitude == float32(0.0))
            largest = max(largest, _bits_of(magnitude))
        sums[row, 0] = sum_abs
        sums[row, 1] = sum_sq
        sums[row, 2] = zeros
        sums[row, 3] = _float_of(largest)


@njit(**_OPTIONS)
def rate(chunks, laws, bits):  # type: ignore[no-untyped-def]
    """Rate of the weights."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, 3]]
        weights = carray(_pointer(chunks[row, 0]), chunks[row, 2])
        bits[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            bits[row] += _powers(weights[begin : begin + _RUN], law, powers)


@njit(**_OPTIONS)
def add_slope(chunks, laws, bits):  # type: ignore[no-untyped-def]
    """Add the scaled slope to the other tensor, which may be the weights themselves; rate before that."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, 3]]
        factor = float32(law[0] * law[1] * law[3])
        weights = carray(_pointer(chunks[row, 0]), chunks[row, 2])
        others = carray(_pointer(chunks[row, 1]), chunks[row, 2])
        bits[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run = weights[begin : begin + _RUN]
            other = others[begin : begin + _RUN]
            bits[row] += _powers(run, law, powers)
            for i in range(run.size):
                powers[i] *= factor * _sign(run[i])
            for i in range(run.size):
                other[i] += powers[i]


@njit(**_OPTIONS)
def shrink(chunks, laws, preconditioned, bits):  # type: ignore[no-untyped-def]
    """Shrink the weights by the scaled slope, stopping at zero; rate before that."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, 3]]
        factor = float32(law[0] * law[1] * law[3])
        root_factor, floor = float32(law[4]), float32(law[5])
        weights = carray(_pointer(chunks[row, 0]), chunks[row, 2])
        others = carray(_pointer(chunks[row, 1]), chunks[row, 2])
        bits[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run = weights[begin : begin + _RUN]
            other = others[begin : begin + _RUN]
            bits[row] += _powers(run, law, powers)
            if preconditioned:
                for i in range(run.size):
                    powers[i] /= np.sqrt(other[i]) * root_factor + floor
            for i in range(run.size):
                weight = run[i]
                left = abs(weight) - powers[i] * factor
                left = float32(0.0) if left <= float32(0.0) else left
                run[i] = left * _sign(weight)
