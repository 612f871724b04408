"""AdamW with the rate term in the same pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from rdo.constraint import RateConstraint
from rdo.errors import ConfigError
from rdo.optimizer_state import will_skip
from rdo_kernels.fused import FOLLOWS, Control, FusedAdamW, NotFiniteError, Tensors, Term, fused_adamw


class RateAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose step carries a rate constraint: ``J = D + lam * R``.

    It does what ``torch.optim.AdamW`` with :func:`rdo.attach` does, to rounding, but reads and writes every weight
    once: the rate step is part of the update, and the sums that the next step's law is fitted from are gathered from
    the weights as they are written. State and parameter groups have AdamW's names.

    On a GPU a step is two launches, one of which does all the work, and never waits for the host: weights that are
    not finite are reported by a later step, steps that a GradScaler skips count for schedules of lambda, and with
    learning rates and lambda as tensors on the device a step can be captured in a CUDA graph (after a few outside).

    Args:
        params: parameters or groups; those that the constraint covers must be among them.
        lr, betas, eps, weight_decay, maximize: as in :class:`torch.optim.AdamW`.
        rate: the constraint. A covered parameter without a gradient takes part with a gradient of zero.
        master_weights: keep a float32 copy of 16-bit parameters (and Adam's moments in float32), which is what is
            updated and rated; the parameters are its roundings. 16-bit weights alone lose small steps.
        backend: one of :data:`rdo_kernels.BACKENDS`; by default what suits the parameters.

    Raises:
        ConfigError: the constraint covers a parameter that is not in ``params``.
    """

    _step_supports_amp_scaling = True
    """``torch.amp.GradScaler`` hands over its scale and whether it found infinities, and leaves the rest to us."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        rate: RateConstraint,
        maximize: bool = False,
        master_weights: bool = False,
        backend: str | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not isinstance(value, Tensor) and not value >= 0.0:
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        if rate.shards.sharded or rate.lam_factors:
            raise ConfigError(
                "RateAdamW takes neither sharded parameters nor lam_factors; use torch.optim.AdamW and rdo.attach"
            )
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"betas must be in [0, 1), got {betas}")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options)
        self.rate, self._master_weights, self._backend = rate, master_weights, backend
        if not master_weights and rate.apply != "gradient":  # whose sum with the gradient is never rounded to 16 bits
            rate.warn_of_lost_steps()
        self._fused: FusedAdamW | None = None
        self._members: list[int] = []
        self._covered = {id(parameter) for parameter in rate.parameters}
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
        constraint = self.rate
        parameters = self._taking_part()
        if not parameters:
            return loss
        if not parameters[0].is_cuda and will_skip(self):
            return loss
        fused = self._fused_over(parameters)
        lam = constraint.begin()
        separate = constraint.fit_to == "after"
        try:
            fused.step(
                [cast(Tensor, parameter.grad) for parameter in parameters],
                [_control(group, top) for group, top in zip(self.param_groups, self._largest_lr(), strict=True)],
                0.0 if separate else lam,
                getattr(self, "grad_scale", None),
                getattr(self, "found_inf", None),
            )
        except NotFiniteError as error:
            rows = {id(parameter): row for row, parameter in enumerate(constraint.parameters)}
            raise constraint.law.non_finite(
                [rows[id(parameters[row])] for row in error.rows], constraint.step
            ) from None
        if separate:
            constraint.law.follow(fused.moments())
            constraint.after_step(self)
        else:
            constraint.finish(fused.bits, fused.theta)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; master weights and their moments stay in float32."""
        super().load_state_dict(state_dict)
        self._fused = None
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, parameter in zip(saved, parameters, strict=True):
            state = state_dict["state"].get(key, {})
            if "master" in state:  # torch has cast everything to the data type of the parameter
                for name in ("master", "exp_avg", "exp_avg_sq"):
                    self.state[parameter][name] = state[name].to(parameter.device, torch.float32, copy=True)

    def _largest_lr(self) -> list[float | Tensor]:
        """Only asked for where it is used, so that a tensor is not computed in vain."""
        return self.rate.learning_rates.largest(self) if self.rate.scale_by_lr else [1.0] * len(self.param_groups)

    def _taking_part(self) -> list[Tensor]:
        """Parameters to update, in order; covered ones without a gradient get one of zeros."""
        parameters: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    if id(parameter) not in self._covered:
                        continue
                    parameter.grad = torch.zeros_like(parameter)
                elif parameter.grad.is_sparse:
                    raise ConfigError("sparse gradients are not supported; use dense gradients for embeddings")
                parameters.append(parameter)
        return parameters

    def _fused_over(self, parameters: list[Tensor]) -> FusedAdamW:
        """The step over these parameters, which are the same in most steps."""
        members = [id(parameter) for parameter in parameters]
        if self._fused is None or members != self._members:
            self._fused, self._members = self._fuse(parameters), members
        return self._fused

    def _fuse(self, parameters: list[Tensor]) -> FusedAdamW:
        states = [self._state_of(parameter) for parameter in parameters]
        steps = torch.stack([state["step"].to(parameters[0].device, torch.float32) for state in states])
        for state, step in zip(states, steps.unbind(), strict=True):
            state["step"] = step  # a view, so that all are counted up at once
        masters = any("master" in state for state in states)
        weights = [state.get("master", parameter) for state, parameter in zip(states, parameters, strict=True)]
        tensors = Tensors(
            [weight.detach() for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [parameter.detach() for parameter in parameters] if masters else None,
            steps,
        )
        constraint = self.rate
        follows = "lr" if constraint.apply == "proximal" else FOLLOWS[2] if constraint.scale_by_lr else "nothing"
        term = Term(
            constraint.entropy_model,
            "preconditioned" if constraint.precondition else constraint.apply,
            follows,
            constraint.pooling == "global",
            constraint.units == "paper",
            [id(parameter) in self._covered for parameter in parameters],
        )
        group_of = {id(p): index for index, group in enumerate(self.param_groups) for p in group["params"]}
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        return fused_adamw(tensors, gradients, [group_of[id(p)] for p in parameters], term, self._backend)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            like = parameter.detach()
            if self._master_weights and parameter.dtype in (torch.bfloat16, torch.float16):
                state["master"] = like = like.to(torch.float32, copy=True)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(like, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(like, memory_format=torch.preserve_format)
        return state


def _control(group: dict[str, Any], largest_lr: float | Tensor) -> Control:
    beta1, beta2 = group["betas"]
    sign = -1.0 if group["maximize"] else 1.0
    return group["lr"], float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"]), sign, largest_lr
