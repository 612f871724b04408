"""What a method is: operating points, the training each needs, and how it writes a compressed checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo.quantizers import AllocatedQuantizer, Quantizer, RelativeQuantizer, UniformQuantizer
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import parse_step
from rdo_harness.decoding import Decoded, DecodedCheckpoint
from rdo_harness.rate_settings import RateSettings

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Batch, PreparedTask

RANS = ("rans",)
"""The coder of every file, unless a suite says otherwise."""

_CALIBRATION_SEED = 1_000_003
"""Added to a run's seed, so that calibration does not see the batches of the training in their order."""


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of a method: how the model was trained and how its weights are compressed.

    Args:
        rate: the rate constraint of the training; None is normal training. Points with equal ``rate`` share a model.
        quantizer: what the weights are rounded by; None if the method rounds them itself.
        sparsity: share of the compressible weights set to zero before quantisation.
        options: what else the method is told, JSON values by name, such as the bits of a peer's integers.
    """

    rate: RateSettings | None
    quantizer: Quantizer | None
    sparsity: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def config(self) -> dict[str, Any]:
        """What distinguishes compression at this point, as JSON values; the training is not part of it."""
        quantizer = None if self.quantizer is None else self.quantizer.config()
        config: dict[str, Any] = {"quantizer": quantizer, "sparsity": self.sparsity}
        return config | ({"options": dict(self.options)} if self.options else {})

    def describe(self) -> str:
        """The setting in a few words, other for every point of a method."""
        parts = [] if self.rate is None else [self.rate.describe()]
        parts += [f"{self.sparsity:.3g} zeros"] if self.sparsity else []
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self.options.items()]
        config = {} if self.quantizer is None else self.quantizer.config()
        if "step" in config:
            parts.append(f"step {config['step']:.4g}")
        elif "ratio" in config:
            parts.append(f"{config['ratio']:g} sigma" + (" of rows" if config["granularity"] == "row" else ""))
        return ", ".join(parts)


@dataclass(frozen=True)
class Context:
    """What a method may use beside the trained model. The test split is not part of it.

    Args:
        architecture: whose ``compressible`` says which weights a method may touch.
        prepared: the task, for calibration data and validation.
        batch_size: examples in a batch of calibration data.
        seed: of the run.
        answers: folder that outlives the point, in which answers of peers are kept.
        quantizer: what the training rounded the weights with, if it did.
    """

    architecture: Architecture
    prepared: PreparedTask
    batch_size: int
    seed: int
    answers: Path
    quantizer: AllocatedQuantizer | None = None

    def calibration(self, batches: int) -> list[Batch]:
        """So many batches of training data, the same ones for the same seed; labels are among them."""
        return list(self.prepared.train_batches(self.batch_size, batches, self.seed + _CALIBRATION_SEED))

    def validation_cross_entropy(self, model: nn.Module) -> float:
        """Mean cross entropy in nats on the validation split, to choose settings by."""
        return self.prepared.evaluate(model, "validation").cross_entropy


@dataclass(frozen=True)
class Method(ABC):
    """A compression method. A subclass is a frozen dataclass whose fields are keys of the suite file.

    Args:
        label: how tables and figures call it; a suite may list a method several times under different labels.
        steps: absolute quantisation steps, numbers or powers like "2^-5".
        relative_steps: steps in units of the root mean square of each tensor or row.
        granularity: "tensor" or "row", for the relative steps.
        coders: registered names, of what the file is coded with; each tensor gets the one that takes fewest bytes.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    coded_afterwards: ClassVar[bool] = True
    """Whether ``coders`` matter after the training alone; where a model is trained for them they are of that."""
    label: str = ""
    steps: tuple[str | float, ...] = ()
    relative_steps: tuple[float, ...] = ()
    granularity: str = "tensor"
    coders: tuple[str, ...] = RANS

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if not self.quantizers():
            raise ConfigError("give at least one quantisation step in `steps` or `relative_steps`")

    @abstractmethod
    def points(self) -> list[OperatingPoint]:
        """Every operating point, those that share a trained model next to each other."""

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        """Compress a trained model, which may be changed, into a compressed checkpoint at ``path``.

        Returns:
            Columns of the result's row that only this method has, as JSON values.
        """
        compressible = context.architecture.compressible
        rdo.save_compressed(model, path, quantizer=point.quantizer, coder=self.coders, compressible=compressible)
        return {}

    def read(self, path: Path) -> Decoded:
        """Read back what :meth:`apply` wrote, whole: the weights that are evaluated."""
        return DecodedCheckpoint(path)

    def quantizers(self) -> list[Quantizer]:
        """One quantizer per step asked for."""
        absolute: list[Quantizer] = [UniformQuantizer(step=parse_step(step)) for step in self.steps]
        relative = [RelativeQuantizer(ratio=ratio, granularity=self.granularity) for ratio in self.relative_steps]
        return absolute + relative

    def config(self) -> dict[str, Any]:
        """What, beside the point itself, determines its file: for the hash of an operating point."""
        identity = {"name": self.name, "version": self.version}
        if self.coders == RANS or not self.coded_afterwards:  # RANS was all there was
            return identity
        return {**identity, "coders": self.coders}
