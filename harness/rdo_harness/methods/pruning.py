"""Magnitude pruning of a normally trained model, then rounding to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rdo.errors import ConfigError
from rdo_harness.architectures.base import Architecture
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.registries import METHODS


@METHODS.register("pruning")
@dataclass(frozen=True)
class MagnitudePruning(Method):
    """Zero the smallest weights, then round to nearest.

    Args:
        sparsities: shares of the compressible weights to zero, each in (0, 1).
        scope: as in :func:`prune`.
    """

    name: ClassVar[str] = "pruning"
    sparsities: tuple[float, ...] = (0.5,)
    scope: str = "tensor"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsities(self.sparsities)
        check_scope(self.scope)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "scope": self.scope}

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(rate=None, quantizer=quantizer, sparsity=sparsity)
            for quantizer in self.quantizers()
            for sparsity in self.sparsities
        ]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        prune(model, point.sparsity, context.architecture, self.scope)
        return super().apply(model, point, context, path)


def check_sparsities(sparsities: Sequence[float], *, or_none: bool = False) -> None:
    """Raise :class:`~rdo.errors.ConfigError` unless there are some, each between 0 and 1, or 0 with ``or_none``."""
    if not sparsities or not all(0.0 < share < 1.0 or (or_none and share == 0.0) for share in sparsities):
        raise ConfigError(f"sparsities must lie between 0 and 1, got {list(sparsities)}")


def check_scope(scope: str) -> None:
    """Raise :class:`~rdo.errors.ConfigError` unless :func:`prune` knows it."""
    if scope not in ("tensor", "model"):
        raise ConfigError(f"scope must be 'tensor' or 'model', got {scope!r}")


def prune(model: nn.Module, sparsity: float, architecture: Architecture, scope: str = "tensor") -> None:
    """Zero that share of the smallest compressible weights, in place.

    Args:
        scope: "tensor" zeroes the share of every tensor, "model" takes one threshold for all. The second spares tensors
            that need many weights, and empties those of small scale, such as a new classifier.
    """
    weights = [p for name, p in model.named_parameters() if architecture.compressible(name, p)]
    for together in [weights] if scope == "model" else [[weight] for weight in weights]:
        prune_smallest(together, sparsity)


@torch.no_grad()
def prune_smallest(weights: list[nn.Parameter], sparsity: float) -> None:
    """Set exactly ``round(sparsity * N)`` weights of smallest magnitude to zero, in place, over all tensors together.

    Among equal magnitudes the earlier weight goes first.
    """
    count = round(sparsity * sum(weight.numel() for weight in weights))
    if count == 0:
        return
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    threshold = magnitudes.kthvalue(count).values
    drop = magnitudes < threshold
    ties = torch.nonzero(magnitudes == threshold).flatten()
    drop[ties[: count - int(drop.sum())]] = True
    for weight, part in zip(weights, drop.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view(weight.shape), 0.0)
