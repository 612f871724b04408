from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from rdo_harness.metrics import bd_rate, interval, pareto_front

ANCHOR = [(rate, 0.2 + 2.0 * 2.0**-rate) for rate in (1.0, 1.5, 2.0, 3.0, 4.0)]


def scaled(factor: float) -> list[tuple[float, float]]:
    return [(factor * rate, loss) for rate, loss in ANCHOR]


@pytest.mark.parametrize(("factor", "percent"), [(0.5, -50.0), (1.0, 0.0), (1.3, 30.0), (0.05, -95.0)])
def test_a_curve_at_a_multiple_of_the_rate_has_that_bd_rate(factor: float, percent: float) -> None:
    result = bd_rate(ANCHOR, scaled(factor))
    assert result.percent == pytest.approx(percent, abs=1e-9)
    assert result.overlap == pytest.approx((ANCHOR[-1][1], ANCHOR[0][1]))
    assert result.coverage == pytest.approx(1.0)
    assert result.points == (5, 5)


def test_swapping_the_curves_inverts_the_factor() -> None:
    test = [(0.7 * rate, loss + 0.01) for rate, loss in ANCHOR]
    forth, back = bd_rate(ANCHOR, test).percent, bd_rate(test, ANCHOR).percent
    assert forth is not None
    assert back is not None
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1.0)


def test_order_and_dominated_points_change_nothing() -> None:
    test = scaled(0.8)
    noisy = [test[3], (5.0, 9.0), *test[:3], (2.0, 3.0), test[4], (float("nan"), 0.1), (1.0, float("inf"))]
    assert bd_rate(ANCHOR, noisy) == bd_rate(ANCHOR, test)


def test_points_of_nearly_equal_cross_entropy_do_not_overshoot() -> None:
    """Fronts of a real run; Akima's splines gave -100.0 % here, linear interpolation gives about -5 %."""
    anchor = [(1.66, 0.5162), (1.86, 0.4400), (2.10, 0.4081), (2.32, 0.3734), (2.92, 0.3619), (3.37, 0.3529)]
    test = [(1.74, 0.4520), (1.96, 0.4043), (2.16, 0.404297), (2.40, 0.3944)]
    percent = bd_rate(anchor, test).percent
    assert percent is not None
    assert abs(percent - linear_bd_rate(anchor, test)) < 3.0


def linear_bd_rate(anchor: list[tuple[float, float]], test: list[tuple[float, float]]) -> float:
    losses = np.linspace(max(anchor[-1][1], test[-1][1]), min(anchor[0][1], test[0][1]), 10_001)
    logs = [
        np.interp(losses, [loss for _, loss in front[::-1]], [math.log(rate) for rate, _ in front[::-1]])
        for front in (anchor, test)
    ]
    return 100.0 * math.expm1(float(np.trapezoid(logs[1] - logs[0], losses) / (losses[-1] - losses[0])))


def test_partial_overlap_is_reported() -> None:
    test = [(0.9 * rate, loss) for rate, loss in ANCHOR][:4]
    result = bd_rate(ANCHOR, test)
    assert result.percent == pytest.approx(-10.0, abs=0.5)
    assert result.overlap == pytest.approx((ANCHOR[3][1], ANCHOR[0][1]))
    assert result.coverage == pytest.approx((ANCHOR[0][1] - ANCHOR[3][1]) / (ANCHOR[0][1] - ANCHOR[4][1]))


def test_there_is_no_figure_without_an_overlap_or_with_few_points() -> None:
    worse = [(rate, loss + 10) for rate, loss in ANCHOR]
    assert bd_rate(ANCHOR, worse).percent is None
    assert bd_rate(ANCHOR, worse).reason == "no overlap"
    few = [*scaled(0.5)[:3], (9.0, 9.0)]
    assert bd_rate(ANCHOR, few).reason == "its front has 3 of 4 points"
    assert bd_rate(few, ANCHOR).reason == "the anchor's front has 3 of 4 points"
    assert bd_rate(ANCHOR, []).points == (5, 0)


def test_pareto_front() -> None:
    assert pareto_front([(2, 1.0), (1, 2.0), (2, 0.5), (3, 0.5), (1.5, 2.5)]) == [(1, 2.0), (2, 0.5)]


def test_interval_is_students_t() -> None:
    values = [1.0, 2.0, 4.0]
    result = interval(values)
    deviation = math.sqrt(sum((value - 7 / 3) ** 2 for value in values) / 2)
    assert result.mean == pytest.approx(7 / 3)
    assert result.half_width == pytest.approx(t.ppf(0.975, 2) * deviation / math.sqrt(3))
    assert interval([5.0]).half_width is None
