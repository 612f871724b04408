"""How lambda moves over the steps of a training, and when its last part begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rdo.errors import ConfigError
from rdo.optimizer_state import OptimizerLike

Schedule = Callable[[int], float]
"""Maps the number of finished optimizer steps to lambda. At lambda 0 the constraint costs nothing and does nothing."""


@dataclass(frozen=True)
class Constant:
    """The same lambda throughout."""

    lam: float

    def __call__(self, step: int) -> float:
        return self.lam


@dataclass(frozen=True)
class OnThenOff:
    """``lam`` for the first ``steps`` steps, then plain training (the authors: 3 epochs with the rate, 8 without)."""

    lam: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.lam if step < self.steps else 0.0


@dataclass(frozen=True)
class WarmUp:
    """Linear from 0 to ``lam`` over the first ``steps`` steps, then constant."""

    lam: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.lam * min(1.0, (step + 1) / max(self.steps, 1))


def factors_by_name(factors: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """The factor of each name: that of the first pattern (``*``, ``?``, ``[...]``) that matches it, else 1.

    Raises:
        ConfigError: a factor is not a number of 0 or more, or a pattern is the first match of no name.
    """
    first = [next((pattern for pattern in factors if fnmatchcase(name, pattern)), None) for name in names]
    for pattern, factor in factors.items():
        if not 0.0 <= factor < math.inf:
            raise ConfigError(f"the factor of lambda for {pattern!r} must be a number of 0 or more, got {factor}")
        if pattern not in first:
            taken = any(fnmatchcase(name, pattern) for name in names)
            why = "patterns before it match first" if taken else f"it matches none of {', '.join(names[:3])}, ..."
            raise ConfigError(f"lam_factors: {pattern!r} decides nothing: {why}")
    return [1.0 if pattern is None else float(factors[pattern]) for pattern in first]


@dataclass
class Decayed:
    """Notices that an optimizer's learning rate has fallen to a share of its peak.

    Attributes:
        share: of the peak.
        peak: the largest learning rate of any group so far.
    """

    share: float
    peak: float = 0.0

    def __call__(self, optimizer: OptimizerLike) -> bool:
        """Look at the learning rate of the step to come."""
        rate = largest_rate(optimizer)
        self.peak = max(self.peak, rate)
        return self.peak > 0.0 and rate <= self.share * self.peak


def largest_rate(optimizer: OptimizerLike) -> float:
    """The largest learning rate of any group."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
