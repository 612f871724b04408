"""The rate constraint: which weights it covers, under which entropy model, and how it acts on a training step.

The cost is ``J = D + lam * R`` with D the training loss and R the mean training rate of the N covered weights, in bits
per parameter (BackSlash, section 4, Algorithm 1). Before every step the law is fitted to the weights as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
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
from rdo_kernels.alarm import Alarm, capturing
from rdo_kernels.fused import Watch, pooled

Apply = Literal["gradient", "decoupled", "proximal"]
Units = Literal["bits", "paper"]
Pooling = Literal["global", "tensor"]
FitTo = Literal["before", "after"]


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
        lam: lambda, or a schedule of it over steps (see :mod:`rdo.control`), or a scalar tensor on the weights'
            device, which is read in every step and never waited for.
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
        fit_to: fit the law to the weights "before" the optimizer's step (Algorithm 1) or, for "decoupled" and
            "proximal", "after" it (the order of the authors' code; :class:`rdo.optim.RateAdamW` then needs two passes).

    Raises:
        ConfigError: no parameters, a duplicate, or options that contradict each other.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        entropy_model: EntropyModel | str = "generalized_gaussian",
        *,
        lam: float | Schedule | Tensor,
        units: Units = "bits",
        apply: Apply = "gradient",
        pooling: Pooling = "global",
        scale_by_lr: bool = False,
        precondition: bool = False,
        fit_to: FitTo = "before",
    ) -> None:
        pairs = list(named_parameters)
        self.names = [name for name, _ in pairs]
        self.parameters = [parameter for _, parameter in pairs]
        self.count = sum(parameter.numel() for parameter in self.parameters)
        if self.count == 0:
            raise ConfigError("the rate constraint covers no weights; check which parameters were selected")
        if len({id(parameter) for parameter in self.parameters}) < len(pairs):
            raise ConfigError("a parameter was given twice; tied weights must be covered once")
        choices = (
            ("units", units, Units),
            ("apply", apply, Apply),
            ("pooling", pooling, Pooling),
            ("fit_to", fit_to, FitTo),
        )
        for option, value, known in choices:
            if value not in get_args(known):
                raise ConfigError(f"{option} must be one of {', '.join(get_args(known))}; got {value!r}")
        if scale_by_lr and apply != "decoupled":
            raise ConfigError('scale_by_lr=True goes with apply="decoupled"; the other two follow the learning rate')
        if precondition and apply != "proximal":
            raise ConfigError('precondition=True goes with apply="proximal"; "gradient" is preconditioned anyway')
        if fit_to == "after" and apply == "gradient":
            raise ConfigError('fit_to="after" goes with apply="decoupled" or "proximal", which come after the step')
        if isinstance(entropy_model, str):
            entropy_model = entropy_model_from_config({"name": entropy_model})
        self.entropy_model = entropy_model
        self.lam_tensor = lam if isinstance(lam, Tensor) else None
        self.schedule: Schedule = lam if callable(lam) else Constant(0.0 if isinstance(lam, Tensor) else float(lam))
        self.units, self.apply, self.pooling, self.fit_to = units, apply, pooling, fit_to
        self.scale_by_lr, self.precondition = scale_by_lr, precondition
        self.step = 0
        self.theta: Tensor | None = None
        self._lam = self._scheduled_lam()
        self._bits: Callable[[], Tensor] | None = None
        self._seen_theta: Callable[[], Tensor] | None = None
        self._largest_lr: dict[int, float | Tensor] = {}
        self._alarm: Alarm | None = None
        self._moments: Tensor | None = None
        self._in_backward: Tensor | None = None
        self._watch = Watch(self.parameters)

    def warn_of_lost_steps(self) -> None:
        """Say so if steps are taken on 16-bit weights themselves."""
        if self.apply != "gradient" and any(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters):
            warnings.warn(
                f'apply="{self.apply}" on 16-bit weights: steps below half a unit in the last place are lost; '
                "train on a float32 copy of the weights: rdo.optim.RateAdamW(..., master_weights=True)",
                stacklevel=3,
            )

    def fit(self) -> Tensor:
        """Fit the law to the weights as they are now; float64 theta, [K] or [T, K] for a law per tensor.

        The sums that the last step gathered are used if no weight changed since, as autograd counts changes (writes
        to ``.data`` escape it).

        Raises:
            NonFiniteWeightsError: a weight is NaN or infinite: a law fitted to it would ruin all others. On a GPU the
                rate term of such weights is left out, and the error comes with a later step: none waits for the device.
        """
        if self._moments is None or self._watch.changed():
            self._moments = rdo_kernels.moments(self.parameters)
        moments = self._moments
        self._check(moments)
        self.theta = self.entropy_model.fit(pooled(moments) if self.pooling == "global" else moments)
        return self.theta

    def _check(self, moments: Tensor) -> None:
        """Raise NonFiniteWeightsError if weights are known not to be finite."""
        if self._alarm is None:
            self._alarm = Alarm(1, moments.device)
        rung = not capturing(moments.device) and self._alarm.rung()
        self._alarm.flags.copy_(moments.isfinite().all().logical_not())
        if not capturing(moments.device):
            self._alarm.send()
        if rung or (not moments.is_cuda and self._alarm.rung()):
            bad = moments.isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
            if bad:
                raise self.non_finite(bad)

    def non_finite(self, rows: Sequence[int]) -> NonFiniteWeightsError:
        """The error that says which of the covered weights are not finite."""
        bad = [self.names[row] for row in rows]
        return NonFiniteWeightsError(
            f"{', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}: weights are NaN or infinite at step "
            f"{self.step}; the training diverged: go back to a checkpoint, and lower the learning rate or lambda"
        )

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Fit the law and, for "gradient", add the rate's gradient. Call after unscaling and clipping."""
        self._lam = self._scheduled_lam()
        if not self.active or will_skip(optimizer):
            return
        if self.fit_to == "before":
            self.fit()
        if self.apply == "gradient":
            factor = gradient_scale(optimizer)
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                elif parameter.grad.is_sparse:
                    raise ConfigError("sparse gradients cannot carry the rate term; use dense embeddings gradients")
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            self._add_gradient(self.parameters, gradients, factor)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Apply the "decoupled" or "proximal" step and count the step."""
        if will_skip(optimizer):
            return
        if self.active and self.apply != "gradient":
            if self.fit_to == "after":
                self.fit()
            if self.theta is not None:
                self._take_step(optimizer)
        self.step += 1

    @torch.no_grad()
    def add_gradient_of(self, row: int) -> None:
        """Add the rate's gradient to that of one parameter, in place; the first one after a step fits the law to all.

        With the same lambda, :class:`rdo.loss.RateTerm` gives the same bits.
        """
        if self._in_backward is None or self._watch.changed():
            self._lam = self._scheduled_lam()
            self.fit()
            self._watch.mark()
            self._in_backward = torch.zeros(len(self.parameters), dtype=torch.float64, device=self.parameters[0].device)
            self.step += 1
        gradient = self.parameters[row].grad
        if not self.active or gradient is None:
            return
        assert self.theta is not None
        theta = self.theta[row] if self.theta.ndim == 2 else self.theta
        # Lambda is rounded to float32, as where it multiplies a loss.
        scale = self._scales(torch.float32)[row : row + 1]
        weights, gradients = [self.parameters[row]], [gradient]
        rates, family = self._in_backward, self.entropy_model
        rates[row] = rdo_kernels.add_rate_gradient(
            weights, gradients, family, self._sound(theta), self._sound(scale, 0.0)
        )[0]
        self._bits = lambda: rates

    def follow(self, moments: Tensor) -> None:
        """Take the moments of the covered weights, float64 [T, 5], from an optimizer that has just written them."""
        self._moments = moments
        self._watch.mark()

    @property
    def active(self) -> bool:
        """Whether lambda is not 0 in this step."""
        return self.lam_tensor is not None or self._lam > 0.0

    def begin(self) -> float | Tensor:
        """Lambda of the step that an optimizer is about to take itself; it calls :meth:`finish` after that."""
        self._lam = self._scheduled_lam()
        return self._lam if self.lam_tensor is None else self.lam_tensor

    def finish(self, bits: Callable[[], Tensor], theta: Callable[[], Tensor]) -> None:
        """Count a step that an optimizer took itself; for reports, what gives the rates [T] and theta that it saw."""
        if self.active:
            self._bits, self._seen_theta = bits, theta
        self.step += 1

    @torch.no_grad()
    def report(self) -> RateReport:
        """What the last constrained step saw; waits for the device."""
        names = self.entropy_model.theta_names
        theta = self._seen_theta() if self._seen_theta is not None else self.theta
        values = [math.nan] * len(names) if theta is None else theta.reshape(-1, len(names)).mean(0).tolist()
        bits = math.nan if self._bits is None else float(self._bits().sum()) / self.count
        lam = self._lam if self.lam_tensor is None else float(self.lam_tensor)
        return RateReport(self.step, lam, self.count, bits, dict(zip(names, values, strict=True)))

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
        largest = {group: float(lr) for group, lr in self._largest_lr.items()}
        return {"step": self.step, "lr_max": largest, "config": self._config()}

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
        self._largest_lr = {int(group): float(lr) for group, lr in state["lr_max"].items()}

    def _config(self) -> dict[str, Any]:
        return {
            "entropy_model": self.entropy_model.config(),
            "units": self.units,
            "apply": self.apply,
            "pooling": self.pooling,
            "scale_by_lr": self.scale_by_lr,
            "precondition": self.precondition,
            "fit_to": self.fit_to,
            "parameters": self.count,
        }

    def _scheduled_lam(self) -> float:
        lam = float(self.schedule(self.step))
        if not 0.0 <= lam < math.inf:
            raise ConfigError(f"lambda must be a number of 0 or more, got {lam} at step {self.step}")
        return lam

    def _scales(self, rounded: torch.dtype = torch.float64) -> Tensor:
        """The factor of each tensor's slope, lambda in bits over N: float64 [T], on the weights' device."""
        assert self.theta is not None
        lam = torch.as_tensor(self._lam if self.lam_tensor is None else self.lam_tensor, dtype=rounded).to(self.theta)
        factor = self.entropy_model.paper_factor(self.theta) if self.units == "paper" else self.theta.new_ones(())
        return (factor * lam / self.count).expand(len(self.parameters))

    def _add_gradient(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        assert self.theta is not None
        bits = rdo_kernels.add_rate_gradient(
            weights, gradients, self.entropy_model, self._sound(self.theta), self._sound(self._scales() * factor, 0.0)
        )
        self._bits = lambda: bits

    def _take_step(self, optimizer: Optimizer) -> None:
        """Do the "decoupled" or "proximal" step, and keep the moments of what it wrote."""
        assert self.theta is not None
        theta, scales = self._sound(self.theta), self._scales()
        if self.apply == "proximal" or self.scale_by_lr:
            scales = scales * self._learning_rates(optimizer)
        scales, family = self._sound(scales, 0.0), self.entropy_model
        if self.apply == "decoupled":
            bits, moments = rdo_kernels.subtract_rate_gradient(self.parameters, family, theta, scales)
        else:
            divisors = preconditioners_of(self.parameters, optimizer) if self.precondition else None
            bits, moments = rdo_kernels.proximal_step(self.parameters, family, theta, scales, divisors)
        self._bits = lambda: bits
        self.follow(moments)

    def _sound(self, values: Tensor, otherwise: float = 1.0) -> Tensor:
        """The values, or another number for each if weights on a GPU are not finite, which the host learns later."""
        if self._alarm is None or not values.is_cuda:
            return values
        return torch.where(self._alarm.flags[0] == 0, values, otherwise)

    def largest_lr(self, optimizer: Optimizer) -> list[float | Tensor]:
        """For each parameter group, the largest learning rate that any step had so far."""
        for index, group in enumerate(optimizer.param_groups):
            lr, known = group["lr"], self._largest_lr.get(index, 0.0)
            if isinstance(lr, Tensor):
                known = torch.as_tensor(known, dtype=torch.float64, device=lr.device)
                self._largest_lr[index] = torch.maximum(known, lr.to(torch.float64))
            else:
                self._largest_lr[index] = max(float(known), float(lr))
        return [self._largest_lr[index] for index in range(len(optimizer.param_groups))]

    def _learning_rates(self, optimizer: Optimizer) -> Tensor:
        """The learning rate of each covered parameter, or its share of the largest (``scale_by_lr``): float64 [T]."""
        groups, device = optimizer.param_groups, self.parameters[0].device
        rates = [torch.as_tensor(group["lr"], dtype=torch.float64, device=device) for group in groups]
        largest = self.largest_lr(optimizer)
        if self.scale_by_lr:
            tops = [torch.as_tensor(top, dtype=torch.float64, device=device) for top in largest]
            rates = [torch.where(top > 0.0, rate / top, 1.0) for rate, top in zip(rates, tops, strict=True)]
        member = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
        return torch.stack(rates)[[member[id(parameter)] for parameter in self.parameters]]
