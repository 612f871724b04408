"""What the rate term reads from a torch optimizer: its loss scale and its second moments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

import rdo_kernels
from rdo.errors import ConfigError


def will_skip(optimizer: Optimizer) -> bool:
    """Whether a GradScaler found infinite gradients and this fused optimizer is about to do nothing."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def gradient_scale(optimizer: Optimizer) -> float | Tensor:
    """What a GradScaler multiplied the gradients by and leaves to this fused optimizer to divide out; else 1."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def preconditioners_of(parameters: list[Tensor], optimizer: Optimizer) -> list[rdo_kernels.Preconditioner]:
    """What an Adam-like optimizer divides its step of each parameter by.

    Raises:
        ConfigError: it keeps no second moment of a parameter.
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    moments, steps, betas, floors = [], [], [], []
    for parameter in parameters:
        state, group = optimizer.state.get(parameter, {}), groups[id(parameter)]
        moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if moment is None:
            raise ConfigError(
                f"precondition=True needs an optimizer with a second moment (Adam, AdamW); {type(optimizer).__name__} "
                "keeps none for a covered parameter"
            )
        moments.append(moment)
        steps.append(torch.as_tensor(state["step"]))
        betas.append(float(group["betas"][1]))
        floors.append(float(group["eps"]))
    count = torch.stack(steps).to(torch.float64)  # of all at once: on a GPU none is waited for
    factors = (1.0 - torch.tensor(betas, dtype=torch.float64).to(count.device) ** count).rsqrt()
    return [rdo_kernels.Preconditioner(*each) for each in zip(moments, factors.unbind(), floors, strict=True)]
