"""Decides which figures became worse: what looks worse is measured again, until that is certain or refuted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from asv_tools.figures import Figure

Measure = Callable[[Figure], float]
LEAD, EXACT_LEAD = 7, 2
"""A figure fails once it was worse in so many rounds more than it was not, and passes once it was not in half of them.

Where noise makes one round in five look worse, this walk fails one figure in 30,000. Sizes and bits have no noise, and
are measured a second time to be sure.
"""
MOST_ROUNDS = 25
"""A figure that is not decided by then passes."""


@dataclass(frozen=True)
class Change:
    """What was found of one figure.

    Attributes:
        before, after: medians over the rounds; NaN where a version has no such figure.
        ratio: median over the rounds of after over before.
        lead: rounds in which it was worse than its limit, less those in which it was not.
        accepted: value up to which an override accepts ``after``, or None.
    """

    figure: Figure
    before: float
    after: float
    ratio: float
    rounds: int
    lead: int
    accepted: float | None = None

    @property
    def lost(self) -> bool:
        """Whether only the version before has the figure."""
        return math.isnan(self.after) and not math.isnan(self.before)

    @property
    def worse(self) -> bool:
        return self.lost or self.lead > 0

    @property
    def fails(self) -> bool:
        return self.worse and not (self.accepted is not None and self.after <= self.accepted)

    @property
    def better(self) -> bool:
        return self.ratio < 1 / self.figure.limit


def compare(
    figures: Sequence[Figure],
    before: Measure,
    after: Measure,
    between_rounds: Callable[[], None] = lambda: None,
    accepted: Mapping[str, float] | None = None,
    lead: int = LEAD,
) -> list[Change]:
    """Measure both versions in turns: all figures once, and what looks worse than allowed until it is decided.

    Args:
        lead: rounds by which times must be worse to fail.
    """
    values: dict[Figure, list[tuple[float, float]]] = {figure: [] for figure in figures}
    suspects = list(figures)
    for number in range(MOST_ROUNDS):
        if number:
            between_rounds()
        for figure in suspects:
            if number % 2 == 0:
                one = before(figure)
                values[figure].append((one, after(figure)))
            else:
                other = after(figure)
                values[figure].append((before(figure), other))
        changes = [_change(figure, values[figure], accepted or {}) for figure in figures]
        wanted = {change.figure: lead if change.figure.gate == "ratio" else EXACT_LEAD for change in changes}
        suspects = [change.figure for change in changes if change.worse and change.lead < wanted[change.figure]]
        if not suspects:
            break
    return [change if change.figure not in suspects else replace(change, lead=0) for change in changes]


def _change(figure: Figure, pairs: Sequence[tuple[float, float]], accepted: Mapping[str, float]) -> Change:
    def median(numbers: Sequence[float]) -> float:
        known = [number for number in numbers if not math.isnan(number)]
        return statistics.median(known) if known else math.nan

    ratios = [new / old if old else math.nan for old, new in pairs]
    worse = sum(ratio > figure.limit for ratio in ratios)
    before, after = median([old for old, _ in pairs]), median([new for _, new in pairs])
    return Change(figure, before, after, median(ratios), len(pairs), 2 * worse - len(pairs), accepted.get(figure.label))
