"""The rate constraint: which weights it covers, under which entropy model, and how it acts on a training step.

The cost is ``J = D + lam * R`` with D the training loss and R the mean training rate of the N covered weights, in bits
per parameter (BackSlash, section 4, Algorithm 1). Before every step the law is fitted to the weights as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

import rdo_kernels
from rdo.control import Constant, Schedule
from rdo.entropy import EntropyModel, entropy_model_from_config
from rdo.errors import ConfigError, NonFiniteWeightsError
from rdo.optimizer_state import gradient_scale, preconditioners_of, will_skip
from rdo.quantizers import Quantizer

Apply = Literal["gradient", "decoupled", "proximal"]
Units = Literal["bits", "paper"]
Pooling = Literal["global", "tensor"]


@dataclass(frozen=True)
class RateReport:
    """What the last constrained step saw. All of it describes the weights before that step.

    Attributes:
        step: constrained optimizer steps so far.
        lam: lambda of that step, in the constraint's units.
        parameters: N, the number of covered weights.
        surrogate_bits_per_parameter: the mean training rate, in bits above the mode of the law.
        theta: fitted parameters of the law by name; the mean over tensors when the law is fitted per tensor.
    """

    step: int
    lam: float
    parameters: int
    surrogate_bits_per_parameter: float
    theta: dict[str, float]


class RateConstraint:
    """Adds ``lam * R`` to the training of some parameters.

    Call :meth:`before_step` and :meth:`after_step` around each optimizer step, or let :func:`rdo.attach` do it.

    Args:
        named_parameters: ``(name, parameter)`` pairs to cover, each parameter once.
        entropy_model: the law, or its registered name.
        lam: lambda, or a schedule of it over steps (see :mod:`rdo.control`).
        units: of lambda. ``"bits"``: loss per bit per parameter, so that ``J = D + lam * mean(bits)``. ``"paper"``:
            the factor of ``mean (|w|+eps)^nu``. With the law's scale 1/g, ``lam_bits = lam_paper * ln 2 / g^nu``; the
            conversion follows the law as it is re-estimated.
        apply: ``"gradient"`` adds ``lam * slope / N`` to the gradient, which goes through the optimizer (the paper's
            Algorithm 1). ``"decoupled"`` subtracts it from the weights after the optimizer's step, with no learning
            rate (the authors' code: lam 2000 in the paper's units, eps 1). ``"proximal"`` shrinks weights by
            ``lr * lam * |slope| / N`` and stops at zero, so that exact zeros appear.
        pooling: fit one law to all weights (``"global"``, the paper) or one to each tensor (``"tensor"``).
        scale_by_lr: "decoupled" only: multiply the step by ``lr / lr_max``, so that it fades with the learning rate.
            ``lr_max`` is the largest learning rate seen so far in the parameter's group.
        precondition: "proximal" only: divide by the optimizer's ``sqrt(v) + eps``, as its own step is.

    Raises:
        ConfigError: no parameters, a duplicate, or options that contradict each other.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        entropy_model: EntropyModel | str = "generalized_gaussian",
        *,
        lam: float | Schedule,
        units: Units = "bits",
        apply: Apply = "gradient",
        pooling: Pooling = "global",
        scale_by_lr: bool = False,
        precondition: bool = False,
    ) -> None:
        pairs = list(named_parameters)
        self.names = [name for name, _ in pairs]
        self.parameters = [parameter for _, parameter in pairs]
        self.count = sum(parameter.numel() for parameter in self.parameters)
        if self.count == 0:
            raise ConfigError("the rate constraint covers no weights; check which parameters were selected")
        if len({id(parameter) for parameter in self.parameters}) < len(pairs):
            raise ConfigError("a parameter was given twice; tied weights must be covered once")
        for option, value, known in (("units", units, Units), ("apply", apply, Apply), ("pooling", pooling, Pooling)):
            if value not in get_args(known):
                raise ConfigError(f"{option} must be one of {', '.join(get_args(known))}; got {value!r}")
        if scale_by_lr and apply != "decoupled":
            raise ConfigError('scale_by_lr=True goes with apply="decoupled"; the other two follow the learning rate')
        if precondition and apply != "proximal":
            raise ConfigError('precondition=True goes with apply="proximal"; "gradient" is preconditioned anyway')
        if isinstance(entropy_model, str):
            entropy_model = entropy_model_from_config({"name": entropy_model})
        self.entropy_model = entropy_model
        self.schedule: Schedule = lam if callable(lam) else Constant(float(lam))
        self.units, self.apply, self.pooling = units, apply, pooling
        self.scale_by_lr, self.precondition = scale_by_lr, precondition
        self.step = 0
        self.theta: Tensor | None = None
        self._lam = self._scheduled_lam()
        self._bits = math.nan
        self._lr_max: dict[int, float] = {}
        self._gathered: tuple[Tensor, list[tuple[int, int]]] | None = None
        if apply != "gradient" and any(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters):
            warnings.warn(
                f'apply="{apply}" on 16-bit weights: steps below half a unit in the last place are lost; '
                "train on a float32 copy of the weights",
                stacklevel=2,
            )

    def fit(self) -> Tensor:
        """Fit the law to the weights as they are now; float64 theta, [K] or [T, K] for a law per tensor.

        The sums that :class:`rdo.optim.RateAdamW` gathered in its last step are used if no weight changed since, as
        autograd counts changes (writes to ``.data`` escape it).

        Raises:
            NonFiniteWeightsError: a weight is NaN or infinite: a law fitted to it would ruin all others.
        """
        kept = self._gathered
        moments = kept[0] if kept and kept[1] == self._versions() else rdo_kernels.moments(self.parameters)
        finite = moments.isfinite().all(dim=1)
        if not bool(finite.all()):
            bad = [name for name, good in zip(self.names, finite.tolist(), strict=True) if not good]
            raise NonFiniteWeightsError(
                f"{', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}: weights are NaN or infinite at step "
                f"{self.step}; the training diverged: go back to a checkpoint, and lower the learning rate or lambda"
            )
        if self.pooling == "global":
            moments = torch.cat([moments[:, :4].sum(0), moments[:, 4].amax(0, keepdim=True)])
        self.theta = self.entropy_model.fit(moments)
        return self.theta

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Fit the law and, for "gradient", add the rate's gradient. Call after unscaling and clipping."""
        self._lam = self._scheduled_lam()
        if self._lam == 0.0 or will_skip(optimizer):
            return
        theta = self.fit()
        if self.apply == "gradient":
            factor = gradient_scale(optimizer)
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                elif parameter.grad.is_sparse:
                    raise ConfigError("sparse gradients cannot carry the rate term; use dense embeddings gradients")
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            scales = [scale * factor for scale in self._scales(theta)]
            bits = rdo_kernels.add_rate_gradient(self.parameters, gradients, self.entropy_model, theta, scales)
            self._bits = float(bits.sum()) / self.count

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Apply the "decoupled" or "proximal" step and count the step."""
        if will_skip(optimizer):
            return
        if self._lam > 0.0 and self.apply != "gradient" and self.theta is not None:
            scales = self._step_scales(optimizer)
            if self.apply == "decoupled":
                bits = rdo_kernels.subtract_rate_gradient(self.parameters, self.entropy_model, self.theta, scales)
            else:
                preconditioners = preconditioners_of(self.parameters, optimizer) if self.precondition else None
                bits = rdo_kernels.proximal_step(
                    self.parameters, self.entropy_model, self.theta, scales, preconditioners
                )
            self._bits = float(bits.sum()) / self.count
        self.step += 1

    @torch.no_grad()
    def plan(self, optimizer: Optimizer) -> list[float] | None:
        """For an optimizer that applies the term itself: fit, and return the factor of each parameter's slope.

        The factors include learning rates, if :attr:`apply` does. None while lambda is 0. Call :meth:`finish` after.
        """
        self._lam = self._scheduled_lam()
        if self._lam == 0.0:
            return None
        self.fit()
        return self._step_scales(optimizer)

    def finish(self, bits: Tensor, moments: Tensor) -> None:
        """Count a step that an optimizer applied itself.

        Args:
            bits: rate of each covered parameter, float64 [T]; ignored if :meth:`plan` returned None.
            moments: of the covered parameters as they are now, float64 [T, 5].
        """
        if self._lam > 0.0:
            self._bits = float(bits.sum()) / self.count
        self._gathered = (moments, self._versions())
        self.step += 1

    def _versions(self) -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in self.parameters]

    def report(self) -> RateReport:
        """What the last constrained step saw."""
        names = self.entropy_model.theta_names
        values = [math.nan] * len(names) if self.theta is None else self.theta.reshape(-1, len(names)).mean(0).tolist()
        named = dict(zip(names, values, strict=True))
        return RateReport(self.step, self._lam, self.count, self._bits, named)

    @torch.no_grad()
    def surrogate_rate(self) -> float:
        """Mean training rate of the weights as they are now, in bits per parameter above the mode."""
        return float(rdo_kernels.rate(self.parameters, self.entropy_model, self.fit()).sum()) / self.count

    @torch.no_grad()
    def coded_rate(self, quantizer: Quantizer) -> float:
        """Order-0 entropy of the covered weights quantised now, in bits per parameter: what an ideal coder pays.

        Each tensor has its own histogram; tables and scales are not counted.
        """
        bits = 0.0
        for name, parameter in zip(self.names, self.parameters, strict=True):
            counts = quantizer.counts(parameter, name).to(torch.float64)
            bits += float((counts * torch.log2(parameter.numel() / counts)).sum())
        return bits / self.count

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state. The law is re-estimated from the weights, so the step and peak learning rates suffice."""
        return {"step": self.step, "lr_max": dict(self._lr_max), "config": self._config()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume bit-exactly from :meth:`state_dict`.

        Raises:
            ConfigError: the state was saved by a constraint with other settings; both are named.
        """
        mine = self._config()
        for key, value in state["config"].items():
            if mine.get(key) != value:
                raise ConfigError(
                    f"cannot resume: {key} was {value} when the state was saved and is {mine.get(key)} now"
                )
        self.step = int(state["step"])
        self._lr_max = {int(group): float(lr) for group, lr in state["lr_max"].items()}

    def _config(self) -> dict[str, Any]:
        return {
            "entropy_model": self.entropy_model.config(),
            "units": self.units,
            "apply": self.apply,
            "pooling": self.pooling,
            "scale_by_lr": self.scale_by_lr,
            "precondition": self.precondition,
            "parameters": self.count,
        }

    def _scheduled_lam(self) -> float:
        lam = float(self.schedule(self.step))
        if not 0.0 <= lam < math.inf:
            raise ConfigError(f"lambda must be a number of 0 or more, got {lam} at step {self.step}")
        return lam

    def _scales(self, theta: Tensor) -> list[float]:
        """The factor of each tensor's slope: lambda in bits over N."""
        laws = theta if theta.ndim == 2 else theta.unsqueeze(0)
        if self.units == "paper":
            lams = [self.entropy_model.lam_from_paper(self._lam, law) for law in laws]
        else:
            lams = [self._lam]
        if len(lams) < len(self.parameters):
            lams = lams * len(self.parameters)
        return [lam / self.count for lam in lams]

    def _step_scales(self, optimizer: Optimizer) -> list[float]:
        """The factor of each tensor's slope in this step, learning rates included where they belong."""
        assert self.theta is not None
        scales, rates = self._scales(self.theta), self._learning_rates(optimizer)
        if self.apply == "proximal":
            return [scale * lr for scale, (lr, _) in zip(scales, rates, strict=True)]
        if self.scale_by_lr:
            return [scale * lr / top for scale, (lr, top) in zip(scales, rates, strict=True)]
        return scales

    def _learning_rates(self, optimizer: Optimizer) -> list[tuple[float, float]]:
        """For each covered parameter, the learning rate of its group and the largest one seen there."""
        group_of: dict[int, int] = {}
        for index, group in enumerate(optimizer.param_groups):
            self._lr_max[index] = max(self._lr_max.get(index, 0.0), float(group["lr"]))
            group_of.update({id(parameter): index for parameter in group["params"]})
        rates = []
        for parameter in self.parameters:
            index = group_of[id(parameter)]
            rates.append((float(optimizer.param_groups[index]["lr"]), self._lr_max[index] or 1.0))
        return rates
