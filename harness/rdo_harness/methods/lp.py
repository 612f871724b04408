"""The Lp regularisers of the paper's ablation (Table 6): BackSlash with the shape of the law held fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo_harness.methods.backslash import RateTraining
from rdo_harness.registries import METHODS


@METHODS.register("lp")
@dataclass(frozen=True)
class LpRegularisation(RateTraining):
    """Training with ``lam * mean (|w|+eps)^p``, p fixed, then rounding to nearest.

    Args:
        p: 0.5, 1 or 2 in the paper.
    """

    name: ClassVar[str] = "lp"
    p: float = 1.0

    def entropy_model(self) -> dict[str, Any]:
        return {"name": "lp", "p": self.p, "eps": self.eps}
