"""The rate constraint: which weights it covers, under which entropy model, and how it acts on a training step.

The cost is ``J = D + lam * R`` with D the training loss and R the mean training rate of the N covered weights, in bits
per parameter (BackSlash, section 4, Algorithm 1). Before every step the law is fitted to the weights as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import rdo_kernels
from rdo.coded_rate import coded_rate
from rdo.control import Constant, Schedule, factors_by_name
from rdo.entropy import EntropyModel, entropy_model_from_config
from rdo.errors import ConfigError
from rdo.fitted_law import FittedLaw
from rdo.optimizer_state import LearningRates, OptimizerLike, gradient_scale, preconditioners_of, takes_none
from rdo.quantizers import Quantizer
from rdo.rate_report import RateReport
from rdo.sharding import Shards

Apply = Literal["gradient", "decoupled", "proximal"]
Units = Literal["bits", "paper"]
Pooling = Literal["global", "tensor"]
FitTo = Literal["before", "after"]


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
        lam_factors: factors of lambda by patterns of names such as ``{"*embed*": 0.5, "*": 2.0}``. The first pattern
            that matches a name decides; a name that none matches has the factor 1.

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
        lam_factors: Mapping[str, float] | None = None,
    ) -> None:
        pairs = list(named_parameters)
        self.names = [name for name, _ in pairs]
        self.parameters = [parameter for _, parameter in pairs]
        self.count = sum(parameter.numel() for parameter in self.parameters)
        if self.count == 0:
            raise ConfigError("the rate constraint covers no weights; check which parameters were selected")
        if len({id(parameter) for parameter in self.parameters}) < len(pairs):
            raise ConfigError("a parameter was given twice; tied weights must be covered once")
        choices = {"units": Units, "apply": Apply, "pooling": Pooling, "fit_to": FitTo}
        for (option, known), value in zip(choices.items(), (units, apply, pooling, fit_to), strict=True):
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
        self.lam_factors = dict(lam_factors or {})
        self._factors = torch.tensor(factors_by_name(self.lam_factors, self.names), dtype=torch.float64)
        self.step = 0
        self.shards = Shards(self.names, self.parameters)
        self.law = FittedLaw(entropy_model, self.names, self.shards, pool=pooling == "global")
        self._lam = self._scheduled_lam()
        self._bits: Callable[[], Tensor] | None = None
        self._seen_theta: Callable[[], Tensor] | None = None
        self._in_backward: Tensor | None = None
        self.skipping = False
        self.learning_rates = LearningRates()

    def warn_of_lost_steps(self) -> None:
        """Say so if steps are taken on 16-bit weights, or added to 16-bit gradients, themselves."""
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters):
            warnings.warn(
                f'apply="{self.apply}" on 16-bit weights: what is below half a unit in the last place is lost; '
                "train on a float32 copy of the weights: rdo.optim.RateAdamW(..., master_weights=True)",
                stacklevel=3,
            )

    def fit(self) -> Tensor:
        """Fit the law to the weights as they are now; float64 theta, [K] or [T, K] for a law per tensor.

        Raises:
            NonFiniteWeightsError: a weight is NaN or infinite. On a GPU the rate term of such weights is left out, and
                the error comes with a later step: none waits for the device.
        """
        return self.law.fit(self.step)

    def skips(self, optimizer: OptimizerLike) -> bool:
        """Whether the step to come is none (:func:`rdo.optimizer_state.takes_none`)."""
        return takes_none(optimizer, lambda: self.shards.any(p.grad for p in self.parameters))

    @torch.no_grad()
    def before_step(self, optimizer: OptimizerLike) -> None:
        """Fit the law and, for "gradient", add the rate's gradient. Call after unscaling and clipping."""
        self._lam = self._scheduled_lam()
        self.skipping = self.skips(optimizer)
        if not self.active or self.skipping:
            return
        if self.fit_to == "before":
            self.fit()
        if self.apply == "gradient":
            scales = self._scales() * gradient_scale(optimizer)
            bits = self._add_gradients(self.shards.parts(), self.shards.gradients(), scales)
            self._bits = lambda: bits

    @torch.no_grad()
    def after_step(self, optimizer: OptimizerLike) -> None:
        """Apply the "decoupled" or "proximal" step and count the step."""
        if self.skipping:
            return
        if self.active and self.apply != "gradient":
            if self.fit_to == "after":
                self.fit()
            if self.law.theta is not None:
                self._take_step(optimizer)
        self.step += 1

    @torch.no_grad()
    def add_gradient_of(self, row: int) -> None:
        """Add the rate's gradient to that of one parameter, in place; the first one after a step fits the law to all.

        With the same lambda, :class:`rdo.loss.RateTerm` gives the same bits.
        """
        if self._in_backward is None or self.law.changed():
            self._lam = self._scheduled_lam()
            self.fit()
            self.law.mark()
            self._in_backward = torch.zeros(len(self.parameters), dtype=torch.float64, device=self.parameters[0].device)
            self.step += 1
        gradient = self.parameters[row].grad
        if self.active and gradient is not None:
            # Lambda is rounded to float32, as where it multiplies a loss.
            rates, scale = self._in_backward, self._scales(torch.float32)[row : row + 1]
            rates[row] = self._add_gradients([self.parameters[row]], [gradient], scale, row)[0]
            self._bits = lambda: rates

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
        """What the last constrained step saw; waits for the device. Of sharded weights every process must ask."""
        names = self.entropy_model.theta_names
        theta = self._seen_theta() if self._seen_theta is not None else self.law.theta
        values = [math.nan] * len(names) if theta is None else theta.reshape(-1, len(names)).mean(0).tolist()
        bits = math.nan if self._bits is None else self.shards.sum(self._bits()) / self.count
        lam = self._lam if self.lam_tensor is None else float(self.lam_tensor)
        return RateReport(self.step, lam, self.count, bits, dict(zip(names, values, strict=True)))

    @torch.no_grad()
    def surrogate_rate(self) -> float:
        """Mean training rate of the weights as they are now, in bits per parameter above the mode."""
        theta = self.fit()
        return self.shards.sum(rdo_kernels.rate(self.shards.parts(), self.entropy_model, theta)) / self.count

    @torch.no_grad()
    def coded_rate(self, quantizer: Quantizer) -> float:
        """Order-0 entropy of the covered weights quantised now, in bits per parameter: what an ideal coder pays.

        Each tensor has its own histogram; tables and scales are not counted. Sharded tensors are gathered, one at a
        time, in which every process must take part.
        """
        return coded_rate(zip(self.names, self.parameters, strict=True), quantizer).bits_per_parameter

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state. The law is re-estimated from the weights, so the step and peak learning rates suffice."""
        return {"step": self.step, "lr_max": self.learning_rates.state_dict(), "config": self._config()}

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
        self.learning_rates.load_state_dict(state["lr_max"])
        self.law.forget()

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
            "lam_factors": self.lam_factors,
        }

    def _scheduled_lam(self) -> float:
        lam = float(self.schedule(self.step))
        if not 0.0 <= lam < math.inf:
            raise ConfigError(f"lambda must be a number of 0 or more, got {lam} at step {self.step}")
        return lam

    def _scales(self, rounded: torch.dtype = torch.float64) -> Tensor:
        """The factor of each tensor's slope, lambda in bits over N: float64 [T], on the weights' device."""
        theta = self.law.theta
        assert theta is not None
        lam = torch.as_tensor(self._lam if self.lam_tensor is None else self.lam_tensor, dtype=rounded).to(theta)
        factor = self.entropy_model.paper_factor(theta) if self.units == "paper" else theta.new_ones(())
        return factor * lam / self.count * self._factors.to(theta.device)

    def _add_gradients(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], scales: Tensor, row: int | None = None
    ) -> Tensor:
        """Add the rate's gradients to those of all parameters, or of the one in ``row``; their rates in bits."""
        theta, law = self.law.theta, self.law
        assert theta is not None
        theta = theta[row] if row is not None and theta.ndim == 2 else theta
        return rdo_kernels.add_rate_gradient(
            weights, gradients, self.entropy_model, law.sound(theta), law.sound(scales, 0.0)
        )

    def _take_step(self, optimizer: OptimizerLike) -> None:
        """Do the "decoupled" or "proximal" step, and keep the moments of what it wrote."""
        law, family, scales = self.law, self.entropy_model, self._scales()
        assert law.theta is not None
        if self.apply == "proximal" or self.scale_by_lr:
            scales = scales * self.learning_rates.of(self.parameters, optimizer, as_share=self.scale_by_lr)
        theta, scales = law.sound(law.theta), law.sound(scales, 0.0)
        if self.apply == "decoupled":
            bits, moments = rdo_kernels.subtract_rate_gradient(self.shards.parts(), family, theta, scales)
        else:
            divisors = preconditioners_of(self.parameters, optimizer) if self.precondition else None
            bits, moments = rdo_kernels.proximal_step(self.shards.parts(), family, theta, scales, divisors)
        self._bits = lambda: bits
        law.follow(moments)
