"""GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rdo.errors import ConfigError
from rdo_harness.methods.base import OperatingPoint
from rdo_harness.methods.peer import PeerQuantization
from rdo_harness.methods.pruning import check_sparsities
from rdo_harness.registries import METHODS

_PRUNERS = ("magnitude", "sparsegpt", "wanda")


@METHODS.register("gptq")
@dataclass(frozen=True)
class GPTQ(PeerQuantization):
    """GPTQ as in llmcompressor: symmetric integers, static activation order, on its own or after pruning.

    Args:
        pruner: "magnitude", "sparsegpt" or "wanda" prunes first, "" does not.
        sparsities: of the pruning.
    """

    name: ClassVar[str] = "gptq"
    peer: ClassVar[str] = "gptq"
    pruner: str = ""
    sparsities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pruner not in ("", *_PRUNERS):
            raise ConfigError(f"pruner must be one of {', '.join(_PRUNERS)}, got {self.pruner!r}")
        if bool(self.pruner) != bool(self.sparsities):
            raise ConfigError("give `pruner` and `sparsities` together")
        if self.pruner:
            check_sparsities(self.sparsities)

    def points(self) -> list[OperatingPoint]:
        points = super().points()
        if not self.pruner:
            return points
        return [
            replace(point, sparsity=sparsity, options={**point.options, "pruner": self.pruner})
            for sparsity in self.sparsities
            for point in points
        ]
