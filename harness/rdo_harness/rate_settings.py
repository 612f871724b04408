"""How a suite says that the rate or the size enters a training, and what becomes of it: :func:`rdo.attach`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import rdo
from rdo.control import Constant, OnThenOff
from rdo.entropy import entropy_model_from_config
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import later

WEIGHT_DECAY = "weight decay"


@dataclass(frozen=True)
class RateSettings:
    """How the rate enters a training; all of :class:`rdo.constraint.RateConstraint`'s settings, JSON-able.

    Args:
        units: of lambda; :data:`WEIGHT_DECAY` if it is AdamW's, of the compressible weights, and there is no rate.
        on: share of the steps with the rate term on; plain training after that.
        bits: instead of lambda a size, in bits per parameter of the file; the next three are of
            :class:`rdo.target.SizeTarget`.
        increase: instead of both a quality: how far validation cross entropy may be above that of normal training, as a
            share of it.
        start: share of the steps before the loss sees rounded weights, None for "decayed", or "settled".
        coders: registered names, of what the size is counted with, and whether rows or columns have steps of their own
            where the coders tell them apart: of :class:`rdo.target.SizeTarget` as well.
        hardening, softness: optimizer steps in which rounded weights harden, and how they are soft.
        recovery: share of the peak learning rate from which on zeros are frozen and the rate term rests; 0 for never.
        distilled: share of the loss that asks for the answers of the normally trained model.
        revision: raised where the same settings come to train another model than before.
    """

    lam: float
    entropy_model: dict[str, Any]
    apply: str = "gradient"
    units: str = "bits"
    pooling: str = "global"
    scale_by_lr: bool = False
    precondition: bool = False
    on: float = 1.0
    bits: float | None = later(None)
    pressure: float = later(0.0)
    allocation: str = later("sensitivity")
    start: float | str | None = later(0.0)
    compensated: bool = later(False)
    revision: int = later(1)
    increase: float | None = later(None)
    distilled: float = later(0.0)
    coders: tuple[str, ...] = later(("rans",))
    channels: bool = later(True)
    hardening: int = later(0)
    softness: str = later("blend")
    recovery: float = later(0.0)

    def describe(self) -> str:
        """A few words for progress lines."""
        if self.increase is not None:
            return f"loss {100 * self.increase:+g} %"
        return f"lambda {self.lam:g}" if self.bits is None else f"{self.bits:g} bits"


def parameter_groups(
    model: nn.Module, architecture: Architecture, weight_decay: float, rate: RateSettings | None
) -> list[dict[str, Any]]:
    """What AdamW trains, all with this weight decay, or the compressible weights with that of the settings."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if rate is None or rate.units != WEIGHT_DECAY:
        return [{"params": list(trained.values()), "weight_decay": weight_decay}]
    decayed = {name for name, parameter in trained.items() if architecture.compressible(name, parameter)}
    return [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": rate.lam},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": weight_decay},
    ]


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    architecture: Architecture,
    steps: int,
    rate: RateSettings,
    quality: Mapping[str, Any],
) -> rdo.Attachment | None:
    """Attach what the settings say to an optimizer: a rate term, a size or a quality; nothing for weight decay.

    Args:
        quality: ``max_loss`` and ``evaluate`` of :func:`rdo.attach`, if the settings ask for a quality.
    """
    if rate.units == WEIGHT_DECAY:
        return None
    if rate.bits is not None or rate.increase is not None:
        return rdo.attach(
            optimizer,
            model,
            bits_per_parameter=rate.bits,
            **quality,
            parameters=architecture.compressible,
            entropy_model=entropy_model_from_config(rate.entropy_model),
            verbose=False,
            target_options={
                "pressure": rate.pressure,
                "allocation": rate.allocation,
                "compensated": rate.compensated,
                "coder": rate.coders,
                "channels": None if rate.channels else False,
                "hardening": rate.hardening,
                "softness": rate.softness,
                "recovery": rate.recovery,
                "start": round(rate.start * steps) if isinstance(rate.start, float) else rate.start or "decayed",
            },
        )
    steps_on = round(rate.on * steps)
    return rdo.attach(
        optimizer,
        model,
        lam=Constant(rate.lam) if rate.on >= 1.0 else OnThenOff(rate.lam, steps_on),
        parameters=architecture.compressible,
        entropy_model=entropy_model_from_config(rate.entropy_model),
        apply=rate.apply,
        units=rate.units,
        pooling=rate.pooling,
        scale_by_lr=rate.scale_by_lr,
        precondition=rate.precondition,
        verbose=False,
    )
