"""How lambda moves over the steps of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
