"""An encoder's search for the integers from which frequencies follow, compiled by numba, in floating point."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}
_LN2 = math.log(2.0)
_LEAST_SHARE = -16 * _LN2


@njit(**_OPTIONS)
def fit_scale(logs, counts, shape, most):  # type: ignore[no-untyped-def]
    """The scale, in 32nds of an octave up to +-``most``, that suits a shape (in 64ths), and the bits of the symbols.

    ``logs`` are natural logarithms of distances from the center (float64 [K], -inf for 0), ``counts`` int64 [K]. The
    law ``exp(-steepness * distance^shape)`` is an exponential family: its code is shortest where its mean of
    ``distance^shape`` is that of the symbols. Newton's method finds that, on logarithms. Shares below 2^-16 count as
    2^-16, at the expense of all.
    """
    shape = shape / 64.0
    powers = np.exp(shape * logs)
    total, mean, least = 0.0, 0.0, np.inf
    for i in range(counts.size):
        total += counts[i]
        mean += counts[i] * powers[i]
        least = min(least, powers[i])
    # Relative to the nearest symbol; a mean a little above it keeps the steepness finite.
    powers -= least
    mean = max(mean / total - least, 1e-9)
    bound = shape * most / 32.0 * _LN2
    place = min(bound, max(-bound, -math.log(shape * (mean + least))))
    for _ in range(30):
        _, first, second = _law_moments(powers, math.exp(place))
        difference = math.log(max(first, 1e-300) / mean)
        slope = math.exp(place) * (second - first * first) / max(first, 1e-300)
        step = difference / slope if slope > 1e-6 else math.copysign(2.0, difference)
        moved = min(bound, max(-bound, place + min(2.0, max(-2.0, step))))
        near = abs(moved - place) < shape / 128
        place = moved
        if near:
            break
    # The weights are powers of 2: ln 2 goes into the scale.
    scale = np.int64(round(min(most, max(-most, (math.log(_LN2) - place) / (shape * _LN2) * 32.0))))
    steepness = _LN2 * math.exp(-shape * scale / 32.0 * _LN2)
    log_mass, covered, nats = math.log(_law_moments(powers, steepness)[0]), 0.0, 0.0
    for i in range(counts.size):
        log_share = max(-steepness * powers[i] - log_mass, _LEAST_SHARE)
        covered += math.exp(log_share)
        nats -= counts[i] * log_share
    return scale, (nats + total * math.log(covered)) / _LN2


@njit(**_OPTIONS)
def _law_moments(powers, steepness):  # type: ignore[no-untyped-def]
    """Sum of the weights, and mean and mean square of ``powers`` under them."""
    mass, first, second = 0.0, 0.0, 0.0
    for i in range(powers.size):
        weight = math.exp(-steepness * powers[i])
        mass += weight
        first += weight * powers[i]
        second += weight * powers[i] * powers[i]
    return mass, first / mass, second / mass


@njit(**_OPTIONS)
def code_bits(counts, frequencies, precision):  # type: ignore[no-untyped-def]
    """Bits of symbols that occur ``counts`` times, int64 [K]; what has a count must have a frequency."""
    bits = 0.0
    for i in range(counts.size):
        if counts[i]:
            bits += counts[i] * (precision - math.log2(frequencies[i]))
    return bits
