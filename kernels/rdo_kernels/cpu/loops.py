"""Power laws on a CPU, compiled by numba: rate ``c * (|w| + eps)^nu`` and its slope, in one pass over float32 weights.

With nu = 0 the rate is ``c * log2(1 + |w| / eps)``, that of a Pareto law.

Each function walks rows of a table of chunks and writes the sums of each chunk, so that results depend neither on the
number of threads nor on where the weights lie.

Legend: rows of ``chunks`` and ``addresses`` are those of :mod:`rdo_kernels.chunks`; a second tensor is called "other".
A law is (nu, c, eps, scale, factor, floor) in float64, one row for each tensor: slopes are multiplied by ``scale``, and
divided by ``sqrt(other) * factor + floor`` in the preconditioned step. ``bits`` (float64, one a chunk) is the rate
of the weights that slopes were taken at; ``sums`` (float64 [chunks, 4]) are those of the weights as written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, float32, int32, njit, types  # type: ignore[attr-defined]

from rdo_kernels.chunks import COUNT, FIRST, TENSOR
from rdo_kernels.cpu.intrinsics import bits_of, fetch_add, float32_at, float64_at, float_of, int64_at, never_inline
from rdo_kernels.types import APPLY

# Sums may be reordered into vector lanes, always in the same way. NaN keeps its meaning.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
# Nothing may be reordered or approximated: multiples are those of an IEEE division, to the bit.
_EXACT: dict[str, Any] = {**_OPTIONS, "fastmath": False}
_NONE = -1
_GRADIENT, _DECOUPLED, _PRECONDITIONED = map(APPLY.index, ("gradient", "decoupled", "preconditioned"))
_SMALLEST_NORMAL = np.float32(2.0**-126)
_LN2 = 0.6931471805599453
_RUN = 512
"""Weights whose float32 lanes are summed before they enter a float64 sum."""


@njit(**_OPTIONS)
def _log2(x):  # type: ignore[no-untyped-def]
    """log2 of a positive normal float32, to a few units in the last place: 2 artanh((m - 1) / (m + 1)) / ln 2 + e."""
    bits = bits_of(x)
    # Every integer is cast back: numba computes in 64 bits, at half the vector width.
    exponent = int32(int32(bits - int32(0x3F3504F3)) >> int32(23))  # so that m is in [sqrt(1/2), sqrt(2))
    m = float_of(int32(bits - int32(exponent << int32(23))))
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
    k = int32(bits_of(shifted) - int32(0x4B400000))
    f = (x - float32(k)) * float32(0.69314718)
    series = float32(1.0 / 5040.0) * f + float32(1.0 / 720.0)
    series = series * f + float32(1.0 / 120.0)
    series = series * f + float32(1.0 / 24.0)
    series = series * f + float32(1.0 / 6.0)
    series = series * f + float32(0.5)
    series = series * f + float32(1.0)
    series = series * f + float32(1.0)
    return series * float_of(int32(int32(k + int32(127)) << int32(23)))


@njit(**_OPTIONS)
def _sign(x):  # type: ignore[no-untyped-def]
    """-1, 0 or 1, without a branch; NaN for NaN."""
    return x if x != x else float32(x > float32(0.0)) - float32(x < float32(0.0))


@njit(**_OPTIONS)
def _powers(weights, law, powers):  # type: ignore[no-untyped-def]
    """Fill ``powers`` with ``(|w| + eps)^(nu - 1)`` and return the sum of the rates."""
    exponent, factor, eps = float32(law[0] - 1.0), float32(law[1]), float32(law[2])
    bits = float32(0.0)
    if exponent == float32(-1.0):
        per_eps = float32(1.0) / eps
        for i in range(weights.size):
            powers[i] = float32(1.0) / (abs(weights[i]) + eps)
        for i in range(weights.size):
            bits += _log2(float32(1.0) + abs(weights[i]) * per_eps)
        return bits * factor
    if exponent == float32(0.0):
        for i in range(weights.size):
            powers[i] = float32(1.0)
    elif exponent == float32(1.0):
        for i in range(weights.size):
            powers[i] = abs(weights[i]) + eps
    else:
        for i in range(weights.size):
            magnitude = max(abs(weights[i]) + eps, _SMALLEST_NORMAL)
            powers[i] = _exp2(exponent * _log2(magnitude))
    for i in range(weights.size):
        bits += powers[i] * (abs(weights[i]) + eps) * factor
    return bits


@njit(**_OPTIONS)
def _slope_factor(law):  # type: ignore[no-untyped-def]
    """What powers are multiplied by to be scaled slopes."""
    return float32((law[0] * law[1] if law[0] != 0.0 else law[1] / _LN2) * law[3])


@njit(**_OPTIONS)
def _divide(powers, seconds, root_factor, floor):  # type: ignore[no-untyped-def]
    """Divide by what Adam divides its step by."""
    for i in range(seconds.size):
        powers[i] /= np.sqrt(seconds[i]) * root_factor + floor


@njit(**_OPTIONS)
def _shrink(weights, powers, factor):  # type: ignore[no-untyped-def]
    """Shrink by ``factor * powers``, stopping at zero."""
    for i in range(weights.size):
        weight = weights[i]
        left = abs(weight) - powers[i] * factor
        left = float32(0.0) if left <= float32(0.0) else left
        weights[i] = left * _sign(weight)


@njit(**_OPTIONS)
def _add_sums(weights, sums):  # type: ignore[no-untyped-def]
    """Add sum |w|, sum w^2 and zeros to ``sums`` and raise its max |w|; NaN and infinity propagate."""
    never_inline()  # or the order of the sums would depend on the caller
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
        largest = max(largest, bits_of(magnitude))
    sums[0] += sum_abs
    sums[1] += sum_sq
    sums[2] += zeros
    top = np.float64(float_of(largest))
    if top > sums[3] or top != top:
        sums[3] = top


@njit(**_EXACT)
def _round(weights, step):  # type: ignore[no-untyped-def]
    """Round to multiples of the step, half to even."""
    for i in range(weights.size):
        weights[i] = np.rint(weights[i] / step) * step


@njit(**_OPTIONS)
def _at(chunks, addresses, row, group):  # type: ignore[no-untyped-def]
    """The float32 of a chunk in one of the groups of tensors."""
    chunk = chunks[row]
    return carray(float32_at(addresses[chunk[TENSOR], group] + 4 * chunk[FIRST]), chunk[COUNT])


@njit(**_OPTIONS)
def moments(chunks, addresses, sums):  # type: ignore[no-untyped-def]
    """Fill ``sums`` (float64 [chunks, 4]) with sum |w|, sum w^2, zeros and max |w|; NaN and infinity propagate."""
    for row in range(chunks.shape[0]):
        weights = _at(chunks, addresses, row, 0)
        sums[row] = 0.0
        for begin in range(0, weights.size, _RUN):  # run by run, as in a step, so that both give the same bits
            _add_sums(weights[begin : begin + _RUN], sums[row])


@njit(**_OPTIONS)
def rate(chunks, addresses, laws, bits):  # type: ignore[no-untyped-def]
    """Rate of the weights."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, TENSOR]]
        weights = _at(chunks, addresses, row, 0)
        bits[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            bits[row] += _powers(weights[begin : begin + _RUN], law, powers)


@njit(**_OPTIONS)
def add_slope(chunks, addresses, laws, stepping, bits, sums):  # type: ignore[no-untyped-def]
    """Add the scaled slope to the other tensor; in a step that is the weights themselves, and their sums are taken."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, TENSOR]]
        factor = _slope_factor(law)
        weights = _at(chunks, addresses, row, 0)
        others = _at(chunks, addresses, row, 1)
        bits[row] = 0.0
        if stepping:
            sums[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run = weights[begin : begin + _RUN]
            other = others[begin : begin + _RUN]
            bits[row] += _powers(run, law, powers)
            for i in range(run.size):
                powers[i] *= factor * _sign(run[i])
            for i in range(run.size):
                other[i] += powers[i]
            if stepping:
                _add_sums(other, sums[row])


@njit(**_OPTIONS)
def shrink(chunks, addresses, laws, preconditioned, bits, sums):  # type: ignore[no-untyped-def]
    """Shrink the weights by the scaled slope, stopping at zero."""
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law = laws[chunks[row, TENSOR]]
        factor = _slope_factor(law)
        root_factor, floor = float32(law[4]), float32(law[5])
        weights = _at(chunks, addresses, row, 0)
        others = _at(chunks, addresses, row, 1)
        bits[row] = 0.0
        sums[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run = weights[begin : begin + _RUN]
            bits[row] += _powers(run, law, powers)
            if preconditioned:
                _divide(powers, others[begin : begin + _RUN], root_factor, floor)
            _shrink(run, powers, factor)
            _add_sums(run, sums[row])


@njit(**_OPTIONS)
def _round_each(weights, steps, first, apart, own):  # type: ignore[no-untyped-def]
    """Round to multiples of steps in turn, of which the next follows ``apart`` weights later; ``own`` is a buffer."""
    place = (first // apart) % steps.size
    left, done = apart - first % apart, 0
    while done < weights.size:
        if apart == 1:
            count = min(steps.size - place, weights.size - done)
            for i in range(count):
                own[done + i] = steps[place + i]
            place = 0
        else:
            count = min(left, weights.size - done)
            for i in range(count):
                own[done + i] = steps[place]
            place = (place + 1) % steps.size
            left = apart
        done += count
    for i in range(weights.size):
        weights[i] = np.rint(weights[i] / own[i]) * own[i]


@njit(**_OPTIONS)
def keep_and_round(chunks, addresses, sums):  # type: ignore[no-untyped-def]
    """Copy the weights to the other tensor and round them to multiples of their steps; sums of the copies.

    Columns of ``addresses`` are those of the two tensors and of the steps, the number of steps, and how many weights
    lie between one and the next.
    """
    own = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        tensor, first = chunks[row, TENSOR], chunks[row, FIRST]
        steps, apart = carray(float32_at(addresses[tensor, 2]), addresses[tensor, 3]), addresses[tensor, 4]
        weights, kept = _at(chunks, addresses, row, 0), _at(chunks, addresses, row, 1)
        sums[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run, copies = weights[begin : begin + _RUN], kept[begin : begin + _RUN]
            for i in range(run.size):
                copies[i] = run[i]
            _add_sums(copies, sums[row])
            if steps.size == 1:
                _round(run, steps[0])
            else:
                _round_each(run, steps, first + begin, apart, own)


@njit(**_OPTIONS)
def adamw(chunks, addresses, settings, laws, apply, bits, sums):  # type: ignore[no-untyped-def]
    """One step of AdamW and of the rate term.

    Groups are weights, gradients, first and second moments. A row of ``settings`` (float64) is (decay,
    beta1, beta2, step, root factor, eps, gradient factor), see :class:`rdo_kernels.types.AdamW`. ``apply`` is an index
    into :data:`rdo_kernels.types.APPLY`; tensors whose scale is 0 get plain AdamW.
    """
    powers = np.empty(_RUN, np.float32)
    for row in range(chunks.shape[0]):
        law, setting = laws[chunks[row, TENSOR]], settings[chunks[row, TENSOR]]
        factor = _slope_factor(law)
        action = apply if factor != float32(0.0) else _NONE
        decay, rest1, beta2 = float32(setting[0]), float32(1.0 - setting[1]), float32(setting[2])
        rest2, step = float32(1.0 - setting[2]), float32(setting[3])
        root_factor, eps, gradient_factor = float32(setting[4]), float32(setting[5]), float32(setting[6])
        weights, gradients = _at(chunks, addresses, row, 0), _at(chunks, addresses, row, 1)
        firsts, seconds = _at(chunks, addresses, row, 2), _at(chunks, addresses, row, 3)
        bits[row] = 0.0
        sums[row] = 0.0
        for begin in range(0, weights.size, _RUN):
            run, gradient = weights[begin : begin + _RUN], gradients[begin : begin + _RUN]
            first, second = firsts[begin : begin + _RUN], seconds[begin : begin + _RUN]
            if action == _GRADIENT:
                bits[row] += _powers(run, law, powers)
                for i in range(run.size):
                    powers[i] = gradient_factor * gradient[i] + factor * powers[i] * _sign(run[i])
            else:
                for i in range(run.size):
                    powers[i] = gradient_factor * gradient[i]
            for i in range(run.size):
                first[i] += rest1 * (powers[i] - first[i])
            for i in range(run.size):
                second[i] = beta2 * second[i] + rest2 * powers[i] * powers[i]
            for i in range(run.size):
                run[i] = decay * run[i] - step * first[i] / (np.sqrt(second[i]) * root_factor + eps)
            if action > _GRADIENT:
                bits[row] += _powers(run, law, powers)
                if action == _DECOUPLED:
                    for i in range(run.size):
                        run[i] -= factor * powers[i] * _sign(run[i])
                else:
                    if action == _PRECONDITIONED:
                        _divide(powers, second, root_factor, eps)
                    _shrink(run, powers, factor)
            _add_sums(run, sums[row])


ACTIONS = ("moments", "rate", "add_slope", "shrink", "keep_and_round", "adamw")
_MOMENTS, _RATE, _ADD_SLOPE, _SHRINK, _KEEP_AND_ROUND = range(5)


@cfunc(types.void(types.CPointer(types.int64)), cache=True)  # type: ignore[no-untyped-call]
def work(pointer):  # type: ignore[no-untyped-def]
    """One thread's share of a job: it takes the next chunk until none is left.

    A job is (next row, rows, action, option, tensors, columns of addresses, of laws and of settings, addresses of
    chunks, of addresses, laws, settings, bits and sums) in int64.
    """
    job = carray(pointer, 14)
    rows, action, option, tensors = job[1], job[2], job[3], job[4]
    chunks = carray(int64_at(job[8]), (rows, 3))
    addresses = carray(int64_at(job[9]), (tensors, job[5]))
    laws = carray(float64_at(job[10]), (tensors, job[6]))
    settings = carray(float64_at(job[11]), (tensors, job[7]))
    bits = carray(float64_at(job[12]), rows)
    sums = carray(float64_at(job[13]), (rows, 4))
    start = job.ctypes.data
    while True:
        row = fetch_add(start, 1)
        if row >= rows:
            break
        one = slice(row, row + 1)
        if action == _MOMENTS:
            moments(chunks[one], addresses, sums[one])
        elif action == _RATE:
            rate(chunks[one], addresses, laws, bits[one])
        elif action == _ADD_SLOPE:
            add_slope(chunks[one], addresses, laws, option != 0, bits[one], sums[one])
        elif action == _SHRINK:
            shrink(chunks[one], addresses, laws, option != 0, bits[one], sums[one])
        elif action == _KEEP_AND_ROUND:
            keep_and_round(chunks[one], addresses, sums[one])
        else:
            adamw(chunks[one], addresses, settings, laws, option, bits[one], sums[one])
