"""What the rate term reads from a torch optimizer: its loss scale and its second moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

import rdo_kernels
from rdo.errors import ConfigError
from rdo.sharding import local_part


class OptimizerLike(Protocol):
    """What is read of an optimizer, or of several together (:class:`rdo.together.Together`)."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters with their learning rates."""

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """What it keeps of each parameter."""


def will_skip(optimizer: OptimizerLike) -> bool:
    """Whether a GradScaler found infinite gradients and this fused optimizer is about to do nothing."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def may_initialise(optimizer: OptimizerLike) -> bool:
    """Whether this may be the step without effect that lets state come into being before a checkpoint is loaded.

    torch.distributed.checkpoint takes one, with learning rates and gradients of zero. Gradients are not looked at here.
    """
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    return not optimizer.state and not any(isinstance(rate, Tensor) or rate for rate in rates)


def takes_none(optimizer: OptimizerLike, any_gradient: Callable[[], bool]) -> bool:
    """Whether the step to come is none: a scaler's, or one that lets the optimizer's state come into being."""
    return will_skip(optimizer) or (may_initialise(optimizer) and not any_gradient())


def gradient_scale(optimizer: OptimizerLike) -> float | Tensor:
    """What a GradScaler multiplied the gradients by and leaves to this fused optimizer to divide out; else 1."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


class LearningRates:
    """Learning rates of an optimizer's groups, which may be tensors, and the largest that each ever had."""

    def __init__(self) -> None:
        self._largest: dict[int, float | Tensor] = {}

    def largest(self, optimizer: OptimizerLike) -> list[float | Tensor]:
        """For each parameter group, the largest learning rate that any step had so far, this one included."""
        for index, group in enumerate(optimizer.param_groups):
            lr, known = group["lr"], self._largest.get(index, 0.0)
            if isinstance(lr, Tensor):
                known = torch.as_tensor(known, dtype=torch.float64, device=lr.device)
                self._largest[index] = torch.maximum(known, lr.to(torch.float64))
            else:
                self._largest[index] = max(float(known), float(lr))
        return [self._largest[index] for index in range(len(optimizer.param_groups))]

    def of(self, parameters: Sequence[Tensor], optimizer: OptimizerLike, *, as_share: bool) -> Tensor:
        """The learning rate of each parameter, or its share of the largest: float64 [T], on their device."""
        groups, device = optimizer.param_groups, parameters[0].device
        rates = [torch.as_tensor(group["lr"], dtype=torch.float64, device=device) for group in groups]
        largest = self.largest(optimizer)
        if as_share:
            tops = [torch.as_tensor(top, dtype=torch.float64, device=device) for top in largest]
            rates = [torch.where(top > 0.0, rate / top, 1.0) for rate, top in zip(rates, tops, strict=True)]
        member = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
        return torch.stack(rates)[[member[id(parameter)] for parameter in parameters]]

    def state_dict(self) -> list[float]:
        """The largest learning rate of each group. A list: distributed checkpoints load no new keys of a dictionary."""
        return [float(lr) for lr in self._largest.values()]

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Go on from :meth:`state_dict`."""
        self._largest = {index: float(lr) for index, lr in enumerate(state)}


def preconditioners_of(parameters: list[Tensor], optimizer: OptimizerLike) -> list[rdo_kernels.Preconditioner]:
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
            whose = type(optimizer).__name__ if isinstance(optimizer, Optimizer) else "one of those given"
            raise ConfigError(
                f"precondition=True needs an optimizer with a second moment (Adam, AdamW); {whose} keeps none for a "
                "covered parameter"
            )
        moments.append(local_part(moment))
        steps.append(local_part(torch.as_tensor(state["step"])))
        betas.append(float(group["betas"][1]))
        floors.append(float(group["eps"]))
    count = torch.stack(steps).to(torch.float64)  # of all at once: on a GPU none is waited for
    factors = (1.0 - torch.tensor(betas, dtype=torch.float64).to(count.device) ** count).rsqrt()
    return [rdo_kernels.Preconditioner(*each) for each in zip(moments, factors.unbind(), floors, strict=True)]
