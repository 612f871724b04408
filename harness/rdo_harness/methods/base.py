"""What a method is: operating points, the training each needs, and how it writes a compressed checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo.quantizers import Quantizer, RelativeQuantizer, UniformQuantizer
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import parse_step
from rdo_harness.training import RateSettings


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of a method: how the model was trained and how its weights are compressed.

    Args:
        rate: the rate constraint of the training; None is normal training. Points with equal ``rate`` share a model.
        quantizer: what the weights are rounded by.
        sparsity: share of the compressible weights set to zero before quantisation.
    """

    rate: RateSettings | None
    quantizer: Quantizer
    sparsity: float = 0.0

    def describe(self) -> str:
        """A few words for progress lines."""
        lam = "" if self.rate is None else f"lambda {self.rate.lam:g}, "
        sparsity = f"sparsity {self.sparsity:g}, " if self.sparsity else ""
        config = self.quantizer.config()
        step = (
            f"step {config['step']:.4g}"
            if "step" in config
            else f"step {config['ratio']:g} sigma/{config['granularity']}"
        )
        return f"{lam}{sparsity}{step}"


@dataclass(frozen=True)
class Method(ABC):
    """A compression method. A subclass is a frozen dataclass whose fields are keys of the suite file.

    Args:
        label: how tables and figures call it; a suite may list a method several times under different labels.
        steps: absolute quantisation steps, numbers or powers like "2^-5".
        relative_steps: steps in units of the root mean square of each tensor or row.
        granularity: "tensor" or "row", for the relative steps.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    label: str = ""
    steps: tuple[str | float, ...] = ()
    relative_steps: tuple[float, ...] = ()
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if not self.quantizers():
            raise ConfigError("give at least one quantisation step in `steps` or `relative_steps`")

    @abstractmethod
    def points(self) -> list[OperatingPoint]:
        """Every operating point, those that share a trained model next to each other."""

    def apply(self, model: nn.Module, point: OperatingPoint, architecture: Architecture, path: Path) -> None:
        """Compress a trained model, which may be changed, into a compressed checkpoint at ``path``."""
        rdo.save_compressed(
            model, path, quantizer=point.quantizer, coder="rans", compressible=architecture.compressible
        )

    def quantizers(self) -> list[Quantizer]:
        """One quantizer per step asked for."""
        absolute: list[Quantizer] = [UniformQuantizer(step=parse_step(step)) for step in self.steps]
        relative = [RelativeQuantizer(ratio=ratio, granularity=self.granularity) for ratio in self.relative_steps]
        return absolute + relative

    def config(self) -> dict[str, Any]:
        """Name and version, for the hash of an operating point."""
        return {"name": self.name, "version": self.version}
