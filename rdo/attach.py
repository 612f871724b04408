"""One line that adds the rate constraint to an existing training script."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rdo.checkpoint import CheckpointInfo
from rdo.closures import Call, act_on_gradients
from rdo.constraint import RateConstraint
from rdo.control import Schedule
from rdo.entropy import EntropyModel
from rdo.errors import ConfigError
from rdo.modules import uncompiled
from rdo.quality import QualityTarget
from rdo.quantizers import AllocatedQuantizer
from rdo.rate_report import RateReport
from rdo.selection import Selection, covers, describe
from rdo.sharding import is_main_process
from rdo.target import DEFAULT_PRESSURE, SizeTarget
from rdo.together import Together


class Attachment:
    """A rate constraint that acts on a training until :meth:`remove` is called."""

    def __init__(self, constraint: RateConstraint) -> None:
        self.constraint = constraint
        self._hooks: list[RemovableHandle] = []

    def rate(self) -> RateReport:
        """What the last step saw: lambda, fitted shape and scale, training rate in bits per parameter."""
        return self.constraint.report()

    def state_dict(self) -> dict[str, Any]:
        """State to save beside the optimizer's; resumes bit-exactly."""
        return self.constraint.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; raises ConfigError if the settings differ."""
        self.constraint.load_state_dict(state)

    def remove(self) -> None:
        """Detach; later steps are plain ones."""
        for hook in self._hooks:
            hook.remove()


class StepAttachment(Attachment):
    """Acts around every step of an optimizer, or every round of steps of several."""

    def __init__(self, constraint: RateConstraint, optimizers: Together) -> None:
        super().__init__(constraint)
        self._checked = False
        self._optimizers = optimizers
        for optimizer in optimizers.optimizers:
            # A compiled step calls the hooks, and need not compile them: they are compiled already.
            self._hooks.append(optimizer.register_step_pre_hook(_eager(self._before_step)))
            self._hooks.append(optimizer.register_step_post_hook(_eager(self._after_step)))

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
        if not self._checked:
            self._check_that_parameters_are_updated()
        if not self._optimizers.begins(optimizer):
            return None
        return act_on_gradients(optimizer, (arguments, options), self._act)

    def _act(self) -> None:
        """What comes between gradients and step."""
        self.constraint.before_step(self._optimizers)

    def _after_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self._optimizers.ends(optimizer):
            self._finish()

    def _finish(self) -> None:
        """What follows the step."""
        self.constraint.after_step(self._optimizers)

    def _check_that_parameters_are_updated(self) -> None:
        updated = _parameters_of(self._optimizers)
        for name, parameter in zip(self.constraint.names, self.constraint.parameters, strict=True):
            if id(parameter) not in updated:
                raise ConfigError(
                    f"{name} is not in the optimizer any more: something replaced the parameters after rdo.attach. "
                    "Attach last, after fully_shard, parallelize_module or accelerator.prepare"
                )
        self._checked = True


class TargetAttachment(StepAttachment):
    """Trains to a size: between steps the model holds its weights as they will be coded, once these are rounded."""

    def __init__(self, constraint: RateConstraint, target: SizeTarget, optimizers: Together) -> None:
        self.target = target
        super().__init__(constraint, optimizers)

    def rate(self) -> RateReport:
        """As for every attachment, and the entropy of the weights as they were last rounded."""
        return replace(super().rate(), entropy_bits_per_parameter=self.target.entropy_bits)

    def quantizer(self) -> AllocatedQuantizer:
        """The step of each tensor as it is now (see :meth:`rdo.target.SizeTarget.quantizer`)."""
        return self.target.quantizer()

    def land(self) -> None:
        """Round the model such that its file has the size asked for (see :meth:`rdo.target.SizeTarget.land`)."""
        self.target.land()

    def save(self, path: str | os.PathLike[str]) -> CheckpointInfo:
        """Write the compressed model, of the size asked for (see :meth:`rdo.target.SizeTarget.save`)."""
        return self.target.save(path)

    def state_dict(self) -> dict[str, Any]:
        """State to save beside the model's and the optimizer's; it holds tensors, the unrounded weights."""
        return {**super().state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])

    def _act(self) -> None:
        if not self.constraint.skips(self._optimizers):
            self.target.before_step(self._optimizers)
        super()._act()

    def _finish(self) -> None:
        super()._finish()
        if not self.constraint.skipping:
            self.target.after_step()


class BackwardAttachment(Attachment):
    """Adds the rate's gradient to each gradient as soon as the backward pass has accumulated it."""

    def __init__(self, constraint: RateConstraint) -> None:
        super().__init__(constraint)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._accumulated, row))  # type: ignore[no-untyped-call]
            for row, parameter in enumerate(constraint.parameters)
        ]

    @torch.no_grad()
    def _accumulated(self, row: int, parameter: Tensor) -> None:
        self.constraint.add_gradient_of(row)


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    model: nn.Module,
    *,
    lam: float | Schedule | Tensor | None = None,
    bits_per_parameter: float | None = None,
    size_mb: float | None = None,
    max_loss: float | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    parameters: Selection = "matrices",
    entropy_model: EntropyModel | str | None = None,
    verbose: bool = True,
    in_backward: bool = False,
    target_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Attachment:
    """Constrain the rate of a model's weights in every later ``optimizer.step()``: by its price, a size or a quality.

    With ``lam`` training minimises loss + lam * rate (BackSlash). With ``bits_per_parameter`` or ``size_mb`` it
    minimises the loss of a model whose file has that size (:class:`rdo.target.SizeTarget`): the loss sees quantised
    weights, and the attachment's ``save`` writes the file. With ``max_loss`` the size follows what ``evaluate``
    measures, and ``save`` writes the smallest file that is within the limit (:class:`rdo.quality.QualityTarget`).

    Works with gradient accumulation, clipping and ``torch.amp.GradScaler``: the term enters once per optimizer step,
    after unscaling and clipping, and not at all when the scaler skips the step. In ``optimizer.step(closure)``
    it enters when the closure has made the gradients (an optimizer that calls it again, as LBFGS does, is refused).

    Args:
        optimizer: any torch optimizer over (some of) the model's parameters, or what accelerate made of one. Attach
            after whatever replaces parameters: ``fully_shard``, ``parallelize_module``, ``accelerator.prepare``. Or
            several that share the parameters (Muon for the matrices, AdamW for embeddings), each of which steps once
            in every round: gradients must all be there, and unscaled, when the first of them steps.
        model: gives the parameters their names.
        lam: loss per bit per parameter (or the paper's lambda with ``units="paper"``), or a schedule of it.
        bits_per_parameter, size_mb: the size instead: of the whole file, over all stored parameters, or in 10^6 bytes.
        max_loss: the quality instead: the largest value that ``evaluate`` may have at the end.
        evaluate: with ``max_loss``, a function that measures a model on data which the training does not see; lower is
            better. It is called with ``model``.
        parameters: ``"matrices"`` covers trainable floating-point parameters of two or more axes, embeddings
            included; ``"all"`` covers every trainable parameter, as the authors' code does; or a function of name and
            parameter.
        entropy_model: the law of the weights, or its registered name; by default the generalized Gaussian with lam, the
            Pareto law with a size.
        verbose: print what is covered.
        in_backward: with ``apply="gradient"``, add the term to each gradient while the backward pass still runs, when
            it lies in the cache. Then it enters once per backward pass and before clipping, and not into gradients of
            parameters that the loss does not reach: for training without accumulation, clipping and loss scaling,
            where it gives the same bits as :class:`rdo.loss.RateTerm` without its memory.
        target_options: with a size or a quality, ``pressure``, ``allocation``, ``start``, ``hardening``,
            ``compensated``, ``coder``, ``raw_dtype`` and others of :class:`rdo.target.SizeTarget`, ``every`` and
            ``begin_bits`` of :class:`rdo.quality.QualityTarget`.
        options: ``apply``, ``units``, ``pooling``, ``scale_by_lr``, ``precondition``, ``fit_to``, ``lam_factors`` of
            :class:`rdo.constraint.RateConstraint`.

    Returns:
        With a size or a quality a :class:`TargetAttachment`.

    Raises:
        ConfigError: nothing would be covered, or an option is wrong.
    """
    model = uncompiled(model)
    optimizers = Together([innermost(each) for each in (optimizer if isinstance(optimizer, Sequence) else [optimizer])])
    updated = _parameters_of(optimizers)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) in updated]
    chosen = [(name, p) for name, p in trainable if p.numel() and p.is_floating_point() and covers(parameters, name, p)]
    if not chosen:
        total = sum(1 for _ in model.named_parameters())
        raise ConfigError(
            f"the rate constraint would cover nothing: of the model's {total} parameters, {len(trainable)} are "
            f"trainable and in the optimizer, and the selection {parameters!r} takes none of them"
        )
    asked = [value is not None for value in (lam, bits_per_parameter, size_mb, max_loss)]
    if sum(asked) != 1:
        raise ConfigError(
            "give one of lam, bits_per_parameter, size_mb and max_loss; a size and a quality find their own lambda"
        )
    if (max_loss is None) != (evaluate is None):
        raise ConfigError("max_loss and evaluate, a function that measures a model, go together")
    sized = lam is None
    if sized and in_backward:
        raise ConfigError("in_backward=True goes with lam; a size needs the gradients of the whole step")
    if not sized and target_options:
        raise ConfigError("target_options go with bits_per_parameter, size_mb or max_loss")
    if lam is None:  # a tensor, which the target sets
        pressure = float((target_options or {}).get("pressure", DEFAULT_PRESSURE))
        lam = torch.zeros((), dtype=torch.float64, device=chosen[0][1].device) if pressure else 0.0
        options = {"pooling": "tensor", **options}
        entropy_model = entropy_model or "pareto"
    constraint = RateConstraint(chosen, entropy_model or "generalized_gaussian", lam=lam, **options)
    constraint.warn_of_lost_steps()
    if in_backward and constraint.apply != "gradient":
        raise ConfigError(f'in_backward=True goes with apply="gradient", got {constraint.apply!r}')
    if in_backward and constraint.shards.sharded:
        raise ConfigError("in_backward=True is for parameters of one process; sharded ones get the term in the step")
    if verbose and is_main_process():
        print(describe(constraint, trainable))
    if not sized:
        return BackwardAttachment(constraint) if in_backward else StepAttachment(constraint, optimizers)
    chosen_options = dict(target_options or {})
    target: SizeTarget
    if max_loss is not None and evaluate is not None:
        target = QualityTarget(model, constraint, max_loss=max_loss, evaluate=evaluate, **chosen_options)
    else:
        sizes: dict[str, Any] = {"bits_per_parameter": bits_per_parameter, "size_mb": size_mb}
        target = SizeTarget(model, constraint, **sizes, **chosen_options)
    return TargetAttachment(constraint, target, optimizers)


def _eager(hook: Callable[..., Any]) -> Callable[..., Any]:
    disabled: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


def _parameters_of(optimizers: Together) -> set[int]:
    return {id(parameter) for group in optimizers.param_groups for parameter in group["params"]}


def innermost(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer in a wrapper such as accelerate's, whose own hooks would never be called."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
