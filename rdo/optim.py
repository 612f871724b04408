"""AdamW with the rate term in the same pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

import rdo_kernels
from rdo.constraint import RateConstraint
from rdo.errors import ConfigError
from rdo.optimizer_state import gradient_scale, will_skip


class RateAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose step carries a rate constraint: ``J = D + lam * R``.

    It does what ``torch.optim.AdamW`` with :func:`rdo.attach` does, to rounding, but reads and writes every weight
    once: the rate step is part of the update, and the sums that the next step's law is fitted from are gathered from
    the weights as they are written. State and parameter groups have AdamW's names.

    Args:
        params: parameters or groups; those that the constraint covers must be among them.
        lr, betas, eps, weight_decay, maximize: as in :class:`torch.optim.AdamW`.
        rate: the constraint. A covered parameter without a gradient takes part with a gradient of zero.

    Raises:
        ConfigError: the constraint covers a parameter that is not in ``params``.
    """

    _step_supports_amp_scaling = True
    """``torch.amp.GradScaler`` hands over its scale and whether it found infinities, and leaves the rest to us."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        rate: RateConstraint,
        maximize: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"betas must be in [0, 1), got {betas}")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options)
        self.rate = rate
        given = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        missing = [name for name, p in zip(rate.names, rate.parameters, strict=True) if id(p) not in given]
        if missing:
            raise ConfigError(
                f"the rate constraint covers {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, "
                "which this optimizer does not have; give both the same parameters"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient, and the constraint's count of steps."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if will_skip(self):
            return loss
        constraint = self.rate
        scales = constraint.plan(self)
        factor_of = dict(zip(map(id, constraint.parameters), scales or [0.0] * len(constraint.parameters), strict=True))
        parameters, settings = self._collect(set(factor_of), 1.0 / gradient_scale(self))
        row_of = {id(parameter): row for row, parameter in enumerate(constraint.parameters)}
        theta = constraint.theta if constraint.theta is not None else constraint.fit()
        if theta.ndim == 2:  # rows of uncovered parameters are never used
            theta = theta[[row_of.get(id(parameter), 0) for parameter in parameters]]
        bits, moments = rdo_kernels.adamw_step(
            parameters,
            [cast(Tensor, parameter.grad) for parameter in parameters],
            [self.state[parameter]["exp_avg"] for parameter in parameters],
            [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
            settings,
            constraint.entropy_model,
            theta,
            [factor_of.get(id(parameter), 0.0) for parameter in parameters],
            "preconditioned" if constraint.precondition else constraint.apply,
        )
        order = {id(parameter): row for row, parameter in enumerate(parameters)}
        covered = [order[id(parameter)] for parameter in constraint.parameters]
        constraint.finish(bits[covered], moments[covered])
        return loss

    def _collect(self, covered: set[int], unscale: float) -> tuple[list[Tensor], list[rdo_kernels.AdamW]]:
        """Parameters to update and their settings; creates missing state, and gradients of covered parameters."""
        parameters: list[Tensor] = []
        groups: list[dict[str, Any]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    if id(parameter) not in covered:
                        continue
                    parameter.grad = torch.zeros_like(parameter)
                if parameter.grad.is_sparse:
                    raise ConfigError("sparse gradients are not supported; use dense gradients for embeddings")
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                parameters.append(parameter)
                groups.append(group)
        steps = [self.state[parameter]["step"] for parameter in parameters]
        torch._foreach_add_(steps, 1)
        counts = torch.stack(steps).tolist() if steps else []
        return parameters, [_settings(group, count, unscale) for group, count in zip(groups, counts, strict=True)]


def _settings(group: dict[str, Any], step: float, unscale: float) -> rdo_kernels.AdamW:
    sign = -1.0 if group["maximize"] else 1.0
    beta1, beta2 = group["betas"]
    return rdo_kernels.AdamW(
        float(group["lr"]),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(group["weight_decay"]),
        step,
        sign * unscale,
    )
