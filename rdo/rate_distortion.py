"""Rate and distortion of tensors at many steps, and the choice among them that a Lagrangian makes.

Y. Shoham and A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP 36(9), 1988.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import rdo_kernels
from rdo.coders import EntropyCoder
from rdo.coders.base import Histogram

STEPS_PER_OCTAVE = 32
_SAMPLE = 1 << 17
_GOLDEN = 0.6180339887498949
_LEAST_STEP = 1e-37


class Point(NamedTuple):
    """What a tensor costs at a step, and what it loses: ``rate`` in bytes, ``distortion`` a sum over its weights."""

    rate: float
    distortion: float
    step: float


class Curve:
    """Rate and distortion of one tensor, measured when they are asked for.

    A tensor of more than 131,072 weights is represented by as many of them, spread evenly over it.

    Args:
        weight: floating-point, any size but empty, finite.
        relative: divide the squared error by the mean square of the tensor.
        importance: what a unit of distortion of this tensor counts.
    """

    def __init__(
        self, weight: Tensor, coder: EntropyCoder, *, relative: bool, importance: float = 1.0, dead_zone: float = 0.0
    ) -> None:
        flat = weight.detach().reshape(-1)
        low, high = torch.aminmax(flat)
        self._largest = max(-float(low), float(high))
        self.count = flat.numel()
        self._coder, self._dead_zone = coder, dead_zone
        self._values = (
            flat[_spread(self.count)].to("cpu", torch.float32) if self.count > _SAMPLE else flat.cpu().float()
        )
        mean_square = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2 / self.count
        self._scale = self.count / self._values.numel()
        self._weight = importance / mean_square if relative and mean_square else importance
        self._points: dict[int, Point] = {}

    @property
    def coarsest(self) -> float:
        """A step that makes every weight zero, whatever the dead zone; 1 for a tensor of zeros."""
        return max(4.0 * self._largest, _LEAST_STEP) if self._largest else 1.0

    @property
    def finest(self) -> float:
        """The least step: float32 has no more digits than it gives the largest weight."""
        return max(2.0**-24 * self._largest, _LEAST_STEP) if self._largest else 1.0

    def index_of(self, step: float) -> int:
        """The place of a step on the grid, rounded to the nearest."""
        return round(STEPS_PER_OCTAVE * math.log2(step * math.sqrt(self._weight)))

    def at(self, index: int) -> Point:
        """The point of the step ``2^(index / STEPS_PER_OCTAVE)`` over the root of what a squared error counts.

        At high rates equal indices are equal slopes, so that they suit all tensors alike. Steps stay within
        :attr:`finest` and :attr:`coarsest`.
        """
        if index not in self._points:
            step = 2.0 ** (index / STEPS_PER_OCTAVE) / math.sqrt(self._weight)
            self._points[index] = self._measure(min(max(step, self.finest), self.coarsest))
        return self._points[index]

    def zero(self) -> Point:
        """The point at which all weights are zero."""
        return self._measure(self.coarsest)

    def _measure(self, step: float) -> Point:
        rounded = torch.tensor(step, dtype=torch.float32)
        symbols = rdo_kernels.quantize([self._values], [rounded], self._dead_zone, count=False).symbols[0].numpy()
        errors = self._values.numpy() - symbols * rounded.numpy()
        histogram = Histogram.of(symbols)
        counts = np.rint(histogram.counts * self._scale).astype(np.int64)
        rate = self._coder.size_bytes(Histogram(histogram.values, counts))
        distortion = float(np.square(errors, dtype=np.float64).sum()) * self._scale * self._weight
        return Point(rate, distortion, step)


def hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the lower convex hull that falls with the rate, by ascending rate."""
    corners: list[Point] = []
    for point in sorted(points):
        if corners and point.distortion >= corners[-1].distortion:
            continue
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def allocate(curves: Sequence[Sequence[Point]], budget: float) -> list[Point]:
    """A point of each curve such that no other choice has both less distortion and no more rate, in sum.

    The tensors go down their hulls together, always where a byte helps most: the choices that minimise distortion plus
    mu times rate, mu falling. The last whose rate is within the budget is returned, the first if there is none.
    """
    hulls = [hull(points) for points in curves]
    gains = [
        (-_slope(corners[place], corners[place + 1]), tensor, place)
        for tensor, corners in enumerate(hulls)
        for place in range(len(corners) - 1)
    ]
    chosen = [0] * len(hulls)
    rate = sum(corners[0].rate for corners in hulls)
    for _, tensor, place in sorted(gains, key=lambda gain: (-gain[0], *gain[1:])):
        rate += hulls[tensor][place + 1].rate - hulls[tensor][place].rate
        if rate > budget:
            break
        chosen[tensor] = place + 1
    return [corners[place] for corners, place in zip(hulls, chosen, strict=True)]


def _slope(left: Point, right: Point) -> float:
    """Change of distortion for a byte; no two corners of a hull have the same rate."""
    return (right.distortion - left.distortion) / (right.rate - left.rate)


def _spread(count: int) -> Tensor:
    """Places of a sample: multiples of the golden ratio, which fall into no pattern of rows and columns."""
    return torch.from_numpy((np.arange(_SAMPLE) * _GOLDEN % 1.0 * count).astype(np.int64))
