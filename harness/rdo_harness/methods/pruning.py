"""Magnitude pruning of a normally trained model, then rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rdo.errors import ConfigError
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.registries import METHODS


@METHODS.register("pruning")
@dataclass(frozen=True)
class MagnitudePruning(Method):
    """Zero the smallest weights, then round to nearest.

    Args:
        sparsities: shares of the compressible weights to zero, each in (0, 1).
        scope: "tensor" zeroes that share of every tensor, "model" takes one threshold for all. The second empties
            tensors of small scale, such as a new classifier head, and was the worse one on MiniLM.
    """

    name: ClassVar[str] = "pruning"
    sparsities: tuple[float, ...] = (0.5,)
    scope: str = "tensor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsities or not all(0.0 < sparsity < 1.0 for sparsity in self.sparsities):
            raise ConfigError(f"sparsities must lie between 0 and 1, got {list(self.sparsities)}")
        if self.scope not in ("tensor", "model"):
            raise ConfigError(f"scope must be 'tensor' or 'model', got {self.scope!r}")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "scope": self.scope}

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(rate=None, quantizer=quantizer, sparsity=sparsity)
            for quantizer in self.quantizers()
            for sparsity in self.sparsities
        ]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        weights = [p for name, p in model.named_parameters() if context.architecture.compressible(name, p)]
        for group in [weights] if self.scope == "model" else [[weight] for weight in weights]:
            prune_smallest(group, point.sparsity)
        return super().apply(model, point, context, path)


@torch.no_grad()
def prune_smallest(weights: list[nn.Parameter], sparsity: float) -> None:
    """Set exactly ``round(sparsity * N)`` weights of smallest magnitude to zero, in place, over all tensors together.

    Among equal magnitudes the earlier weight goes first.
    """
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = round(sparsity * magnitudes.numel())
    if count == 0:
        return
    threshold = magnitudes.kthvalue(count).values
    drop = magnitudes < threshold
    ties = torch.nonzero(magnitudes == threshold).flatten()
    drop[ties[: count - int(drop.sum())]] = True
    for weight, part in zip(weights, drop.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view(weight.shape), 0.0)
