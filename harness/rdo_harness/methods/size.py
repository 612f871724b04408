"""Training to a size: the loss sees weights on the grid they will be coded on, with or without a rate term."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rdo
from rdo.errors import ConfigError
from rdo.hardening import HARDENING
from rdo_harness.config import later
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.methods.pruning import check_scope, check_sparsities, prune
from rdo_harness.rate_settings import RateSettings
from rdo_harness.registries import METHODS


@dataclass(frozen=True)
class SizeTraining(Method):
    """One training for each size; see :class:`rdo.target.SizeTarget`.

    Args:
        bits: sizes of the file, in bits per parameter, each a training of its own.
        law: registered name of the entropy model whose rate acts on the weights.
        pressure: length of the rate's gradient relative to the loss's at one bit; 0 for no rate term.
        allocation: how the steps of the tensors relate: "sensitivity", "balanced", "scale" or "equal".
        compensated: whether the first rounding is compensated, as by GPTQ.
        channels: with "context" among these, whether rows or columns of matrices have steps of their own.
        hardening: optimizer steps in which rounded weights harden, from the first rounding on if not compensated.
        softness: how they are soft until then: "blend" or "noise".
        recovery: share of the peak learning rate from which on zeros are frozen and the rate term rests; 0 for never.
        start: share of the steps before the loss sees rounded weights, or "decayed" or "settled".
        distilled: share of the loss that asks for the answers of the normally trained model, which costs one more
            forward pass a step.
        sparsities: shares of the weights that are zeroed after the training, smallest first; each is a point of its
            own, of a smaller file. 0 leaves the model as it is.
        scope: of each tensor, or of the model; see :func:`rdo_harness.methods.pruning.prune`.
    """

    coded_afterwards: ClassVar[bool] = False
    bits: tuple[float, ...] = ()
    law: str = "pareto"
    pressure: float = 0.0
    allocation: str = "sensitivity"
    start: float | str = 0.0
    compensated: bool = False
    distilled: float = 0.0
    channels: bool = later(True)
    hardening: int = 0
    softness: str = "blend"
    recovery: float = 0.0
    sparsities: tuple[float, ...] = (0.0,)
    scope: str = "tensor"

    def __post_init__(self) -> None:
        if not self.bits or self.quantizers():
            raise ConfigError("give at least one size in `bits`, and no steps: they follow from the size")
        check_sparsities(self.sparsities, or_none=True)
        check_scope(self.scope)
        if not 0.0 <= self.distilled <= 1.0:
            raise ConfigError(f"`distilled` is a share of the loss, from 0 to 1; got {self.distilled:g}")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def config(self) -> dict[str, Any]:
        # Tensor by tensor was all there was.
        return super().config() | ({} if self.scope == "tensor" else {"scope": self.scope})

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(
                rate=RateSettings(
                    lam=0.0,
                    entropy_model={"name": self.law},
                    bits=bits,
                    pressure=self.pressure,
                    allocation=self.allocation,
                    start=None if self.start == "decayed" else self.start,  # None in what is published
                    compensated=self.compensated,
                    distilled=self.distilled,
                    coders=self.coders,
                    channels=self.channels,
                    # A late first rounding that is compensated has none.
                    hardening=0 if self.start == "decayed" and self.compensated else self.hardening,
                    softness=self.softness,
                    recovery=self.recovery,
                    revision=self._revision(bits),
                ),
                quantizer=None,
                sparsity=sparsity,
            )
            for bits in self.bits
            for sparsity in self.sparsities
        ]

    def _revision(self, bits: float) -> int:
        """Of what rows were made by: "settled" was decided after 40 steps at first; compensation had no damping; the
        pressure was the same at all sizes; of late ones compensation saw padding, and few inputs; steps of rows and
        columns were as far apart as squared gradients ask for."""
        if self.channels and self.allocation == "sensitivity" and "context" in self.coders:
            return 6
        if self.compensated and self.start == "decayed":
            return 5
        if self.pressure and bits != 1.0:
            return 4
        if self.start == "settled":
            return 2
        return 3 if self.compensated else 1

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        assert point.rate is not None
        assert point.rate.bits is not None
        assert context.quantizer is not None, "a training to a size leaves its steps"
        prune(model, point.sparsity, context.architecture, self.scope)
        quantizer = replace(context.quantizer, bits=point.rate.bits)
        rdo.save_compressed(
            model, path, quantizer=quantizer, coder=point.rate.coders, compressible=context.architecture.compressible
        )
        return {}


@METHODS.register("backslash-size")
@dataclass(frozen=True)
class BackSlashToSize(SizeTraining):
    """Least loss at a size: rate term, steps by sensitivity, and the loss of rounded weights."""

    name: ClassVar[str] = "backslash-size"
    pressure: float = 0.03
    compensated: bool = True
    start: float | str = "settled"
    hardening: int = HARDENING


@METHODS.register("qat")
@dataclass(frozen=True)
class QuantizationAware(SizeTraining):
    """Quantisation-aware training with the straight-through estimator, without a rate term (the baseline)."""

    name: ClassVar[str] = "qat"
    allocation: str = "scale"
