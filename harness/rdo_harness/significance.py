"""Intervals over test items, and paired tests between two results on the same items."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_Z = 1.959963984540054


@dataclass(frozen=True)
class Paired:
    """Two results on the same test items.

    Attributes:
        difference: mean of the second less that of the first; accuracy as a share, or nats per item.
        low, high: 95 % interval of it over items, by the bootstrap.
        p_value: that a difference so large comes by chance: McNemar's exact test of accuracies, the bootstrap of nats.
    """

    difference: float
    low: float
    high: float
    p_value: float


def item_nats(row: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Nats of every test item of a row, float64 [items], or None if the row has none."""
    packed = row.get("item_nats")
    if not isinstance(packed, str):
        return None
    return np.frombuffer(base64.b64decode(packed), "<f2").astype(np.float64)


def item_correct(row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Whether every test item of a row was answered rightly, bool [items], or None if the row does not say."""
    packed, items = row.get("item_correct"), row.get("test_items")
    if not isinstance(packed, str) or items is None:
        return None
    bits = np.frombuffer(base64.b64decode(packed), np.uint8)
    return np.unpackbits(bits, count=int(items)).astype(bool)


def wilson(successes: int, items: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927), as good near 0 and 1 as elsewhere; ``items`` is at least 1."""
    share, z2 = successes / items, _Z**2
    centre = share + z2 / (2 * items)
    spread = _Z * math.sqrt(share * (1 - share) / items + z2 / (4 * items**2))
    return max(0.0, (centre - spread) / (1 + z2 / items)), min(1.0, (centre + spread) / (1 + z2 / items))


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of independent values, by 2,000 resamples; the same one for the same seed."""
    low, high = np.quantile(_resampled_means(values, seed), (0.025, 0.975))
    return float(low), float(high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Exact test of two accuracies on the same items (McNemar, 1947): only items that one has right alone count."""
    from scipy.stats import binomtest

    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = second.astype(np.float64) - first
    low, high = bootstrap(difference)
    return Paired(float(difference.mean()), low, high, p_value)


def paired_bootstrap(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> Paired:
    """Test of two mean cross entropies on the same items, two-sided, by resampling the differences."""
    difference = second - first
    means = _resampled_means(difference, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return Paired(float(difference.mean()), float(low), float(high), min(1.0, 2 * max(tail, 1 / _RESAMPLES)))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    chosen = (generator.integers(len(values), size=len(values)) for _ in range(_RESAMPLES))
    return np.array([values[items].mean() for items in chosen])
