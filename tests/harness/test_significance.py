"""Intervals and paired tests: known values, and how often they hold on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdo_harness.metrics import pack_items
from rdo_harness.significance import bootstrap, item_correct, item_nats, mcnemar, paired_bootstrap, wilson
from rdo_harness.tasks.base import Evaluation


def test_wilson_is_the_published_interval() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), method 3
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_items_survive_a_row() -> None:
    correct = torch.rand(1003, generator=torch.Generator().manual_seed(0)) < 0.7
    nats = torch.rand(1003, dtype=torch.float64)
    row = {"test_items": 1003, **pack_items(Evaluation(0.7, 0.5, 1003, correct, nats))}
    assert item_correct(row).tolist() == correct.tolist()  # type: ignore[union-attr]
    assert np.abs(item_nats(row) - nats.numpy()).max() < 1e-3  # type: ignore[operator]
    assert item_nats({}) is None
    assert item_correct({"item_correct": float("nan"), "test_items": 3}) is None


def test_the_bootstrap_covers_the_true_mean() -> None:
    generator = np.random.default_rng(1)
    samples = (generator.exponential(1.0, 200) for _ in range(100))
    covered = sum(low <= 1.0 <= high for low, high in map(bootstrap, samples))
    assert 88 <= covered <= 100
    values = generator.normal(size=50)
    assert bootstrap(values) == bootstrap(values)


def test_mcnemar_counts_only_what_one_alone_has_right() -> None:
    first = np.array([True] * 60 + [False] * 40)
    second = first.copy()
    assert mcnemar(first, second).p_value == 1.0
    second[60:69] = True  # 9 won
    second[:1] = False  # 1 lost
    found = mcnemar(first, second)
    assert found.difference == pytest.approx(0.08)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.low < 0.08 < found.high


def test_a_paired_test_sees_what_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    first = generator.exponential(1.0, 400)
    second = first + 0.02 + generator.normal(0, 0.05, 400)
    found = paired_bootstrap(first, second)
    assert found.p_value < 0.01
    assert found.low > 0
    one, other = bootstrap(first), bootstrap(second)
    assert one[1] > other[0], "unpaired, the intervals overlap"
    null = [paired_bootstrap(first, first + generator.normal(0, 0.05, 400), seed).p_value for seed in range(40)]
    assert sum(p < 0.05 for p in null) <= 6
