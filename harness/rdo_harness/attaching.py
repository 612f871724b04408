"""How the settings of a suite become :func:`rdo.attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

import rdo
from rdo.control import Constant, OnThenOff
from rdo.entropy import entropy_model_from_config
from rdo_harness.architectures.base import Architecture

if TYPE_CHECKING:
    from rdo_harness.training import Budget, RateSettings


def attach(
    optimizer: torch.optim.Optimizer, model: nn.Module, architecture: Architecture, budget: Budget, rate: RateSettings
) -> rdo.Attachment:
    """Attach what the settings say to an optimizer: a rate term, or a size."""
    if rate.bits is not None:
        return rdo.attach(
            optimizer,
            model,
            bits_per_parameter=rate.bits,
            parameters=architecture.compressible,
            entropy_model=entropy_model_from_config(rate.entropy_model),
            verbose=False,
            target_options={
                "pressure": rate.pressure,
                "allocation": rate.allocation,
                "compensated": rate.compensated,
                "start": None if rate.start is None else round(rate.start * budget.steps),
            },
        )
    steps_on = round(rate.on * budget.steps)
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
