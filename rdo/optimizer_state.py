"""What the rate term reads from a torch optimizer: its loss scale and its second moments."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

import rdo_kernels
from rdo.errors import ConfigError


def will_skip(optimizer: Optimizer) -> bool:
    """Whether a GradScaler found infinite gradients and this fused optimizer is about to do nothing."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def gradient_scale(optimizer: Optimizer) -> float:
    """What a GradScaler multiplied the gradients by and leaves to this fused optimizer to divide out; else 1."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def preconditioners_of(parameters: list[Tensor], optimizer: Optimizer) -> list[rdo_kernels.Preconditioner]:
    """What an Adam-like optimizer divides its step of each parameter by.

    Raises:
        ConfigError: it keeps no second moment of a parameter.
    """
    found = []
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        state, group = optimizer.state.get(parameter, {}), groups[id(parameter)]
        moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if moment is None:
            raise ConfigError(
                f"precondition=True needs an optimizer with a second moment (Adam, AdamW); {type(optimizer).__name__} "
                "keeps none for a covered parameter"
            )
        correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
        found.append(rdo_kernels.Preconditioner(moment, 1.0 / math.sqrt(correction), float(group["eps"])))
    return found
