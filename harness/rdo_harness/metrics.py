"""Figures of merit: BD-rate between rate-distortion curves, and means with intervals over seeds."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Evaluation

Point = tuple[float, float]
"""Rate in bits per parameter (> 0) and cross entropy in nats; less is better in both."""

MIN_POINTS = 4
ITEM_COLUMNS = ["item_nats", "item_correct"]
"""Columns of a row that hold an outcome for each test item."""


@dataclass(frozen=True)
class BDRate:
    """Mean difference in rate at equal cross entropy (Bjontegaard 2001).

    Attributes:
        percent: -30 means 30 % fewer bits than the anchor for the same cross entropy; None if it cannot be told.
        overlap: the range of cross entropy over which it was taken, in nats.
        coverage: that range's share of the anchor's own.
        points: points on the Pareto fronts of the anchor and of the other curve.
        reason: why there is no figure, or "".
    """

    percent: float | None
    overlap: tuple[float, float] | None
    coverage: float
    points: tuple[int, int]
    reason: str = ""


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % confidence interval (Student's t); None with a single value."""

    mean: float
    half_width: float | None
    count: int


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, by rising rate and falling cross entropy."""
    front: list[Point] = []
    for rate, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((rate, loss))
    return front


def bd_rate(anchor: Sequence[Point], test: Sequence[Point]) -> BDRate:
    """Compare two curves on their Pareto fronts, in the logarithm of the rate, by monotone cubics (PCHIP).

    Fronts are monotone and so must what runs through them be: where two of its points differ little in cross entropy
    and much in rate, Akima's splines overshoot, to -100 % in a case we met. Non-finite points are left out. There is
    no figure with fewer than four points on a front, or without an overlap.
    """
    fronts = [pareto_front([point for point in curve if all(map(math.isfinite, point))]) for curve in (anchor, test)]
    sizes = (len(fronts[0]), len(fronts[1]))
    if min(sizes) < MIN_POINTS:
        of, size = ("the anchor's", sizes[0]) if sizes[0] < MIN_POINTS else ("its", sizes[1])
        return BDRate(None, None, 0.0, sizes, f"{of} front has {size} of {MIN_POINTS} points")
    low = max(front[-1][1] for front in fronts)
    high = min(front[0][1] for front in fronts)
    if low >= high:
        return BDRate(None, None, 0.0, sizes, "no overlap")
    import bjontegaard

    quality = [[-loss for _, loss in front] for front in fronts]
    rates = [[rate for rate, _ in front] for front in fronts]
    percent = float(
        bjontegaard.bd_rate(
            rates[0],
            quality[0],
            rates[1],
            quality[1],
            method="pchip",
            require_matching_points=False,
            min_overlap=0.0,
        )
    )
    coverage = (high - low) / (fronts[0][0][1] - fronts[0][-1][1])
    return BDRate(percent, (low, high), coverage, sizes)


def metric_title(name: str) -> str:
    """A metric's name as people write it: ``bits/byte`` for ``bits_per_byte``."""
    return name.replace("_per_", "/").replace("_", " ")


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of independent values, at least one."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, None, count)
    from scipy.stats import t

    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count), count)


def pack_items(evaluation: Evaluation) -> dict[str, Any]:
    """Per-item outcomes as two columns of a row: bits and little-endian float16 nats, in base64."""
    packed: dict[str, Any] = {}
    if evaluation.nats is not None:
        nats = evaluation.nats.clamp(max=60000.0).numpy().astype("<f2")
        packed["item_nats"] = base64.b64encode(nats.tobytes()).decode()
        if evaluation.correct is not None and len(evaluation.correct) == len(nats):
            packed["item_correct"] = base64.b64encode(np.packbits(evaluation.correct.numpy()).tobytes()).decode()
    return packed
