"""Magnitude pruning of a model that was trained with BackSlash, then rounding to nearest (Figure 8 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from rdo_harness.methods.backslash import BackSlash
from rdo_harness.methods.base import Context, OperatingPoint
from rdo_harness.methods.pruning import check_sparsities, prune
from rdo_harness.registries import METHODS


@METHODS.register("backslash-pruning")
@dataclass(frozen=True)
class BackSlashPruning(BackSlash):
    """BackSlash, then the smallest weights of every tensor zeroed, then rounding to nearest.

    Args:
        sparsities: shares of the compressible weights to zero, each in (0, 1).
    """

    name: ClassVar[str] = "backslash-pruning"
    sparsities: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsities(self.sparsities)

    def points(self) -> list[OperatingPoint]:
        return [replace(point, sparsity=sparsity) for point in super().points() for sparsity in self.sparsities]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        prune(model, point.sparsity, context.architecture)
        return super().apply(model, point, context, path)
