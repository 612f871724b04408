"""One line that adds the rate constraint to an existing training script."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rdo.constraint import RateConstraint
from rdo.control import Schedule
from rdo.entropy import EntropyModel
from rdo.errors import ConfigError
from rdo.rate_report import RateReport

Selection = Literal["matrices", "all"] | Callable[[str, Tensor], bool]


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
    """Acts around every step of an optimizer."""

    def __init__(self, constraint: RateConstraint, optimizer: Optimizer) -> None:
        super().__init__(constraint)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda optimizer, *_: constraint.after_step(optimizer)),
        ]

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        closure = options.get("closure", arguments[0] if arguments else None)
        # Optimizer.step is called unbound inside torch's wrapper, so the first argument may be the optimizer itself.
        if closure is optimizer:
            closure = arguments[1] if len(arguments) > 1 else None
        if closure is not None and self.constraint.apply == "gradient":
            raise ConfigError(
                "optimizer.step(closure) recomputes the gradients and would drop the rate term; call the closure "
                'yourself and then optimizer.step(), or use apply="proximal"'
            )
        self.constraint.before_step(optimizer)


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
    optimizer: Optimizer,
    model: nn.Module,
    *,
    lam: float | Schedule | Tensor,
    parameters: Selection = "matrices",
    entropy_model: EntropyModel | str = "generalized_gaussian",
    verbose: bool = True,
    in_backward: bool = False,
    **options: Any,
) -> Attachment:
    """Constrain the rate of a model's weights in every later ``optimizer.step()``.

    Works with gradient accumulation, clipping and ``torch.amp.GradScaler``: the term enters once per optimizer step,
    after unscaling and clipping, and not at all when the scaler skips the step.

    Args:
        optimizer: any torch optimizer over (some of) the model's parameters.
        model: gives the parameters their names.
        lam: loss per bit per parameter (or the paper's lambda with ``units="paper"``), or a schedule of it.
        parameters: ``"matrices"`` covers trainable floating-point parameters of two or more axes, embeddings
            included; ``"all"`` covers every trainable parameter, as the authors' code does; or a function of name and
            parameter.
        entropy_model: the law of the weights, or its registered name.
        verbose: print what is covered.
        in_backward: with ``apply="gradient"``, add the term to each gradient while the backward pass still runs, when
            it lies in the cache. Then it enters once per backward pass and before clipping, and not into gradients of
            parameters that the loss does not reach: for training without accumulation, clipping and loss scaling,
            where it gives the same bits as :class:`rdo.loss.RateTerm` without its memory.
        options: ``apply``, ``units``, ``pooling``, ``scale_by_lr``, ``precondition``, ``fit_to`` of
            :class:`rdo.constraint.RateConstraint`.

    Raises:
        ConfigError: nothing would be covered, or an option is wrong.
    """
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) in updated]
    chosen = [
        (name, p) for name, p in trainable if p.numel() and p.is_floating_point() and _covers(parameters, name, p)
    ]
    if not chosen:
        total = sum(1 for _ in model.named_parameters())
        raise ConfigError(
            f"the rate constraint would cover nothing: of the model's {total} parameters, {len(trainable)} are "
            f"trainable and in the optimizer, and the selection {parameters!r} takes none of them"
        )
    constraint = RateConstraint(chosen, entropy_model, lam=lam, **options)
    constraint.warn_of_lost_steps()
    if in_backward and constraint.apply != "gradient":
        raise ConfigError(f'in_backward=True goes with apply="gradient", got {constraint.apply!r}')
    if verbose:
        print(describe(constraint, trainable))
    return BackwardAttachment(constraint) if in_backward else StepAttachment(constraint, optimizer)


def describe(constraint: RateConstraint, trainable: Sequence[tuple[str, Tensor]]) -> str:
    """Which parameters a constraint covers and what share of the trainable weights that is, as lines of text."""
    total = sum(parameter.numel() for _, parameter in trainable)
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, parameter in zip(constraint.names, constraint.parameters, strict=True):
        key = (re.sub(r"\d+", "*", name), tuple(parameter.shape))
        groups[key] = groups.get(key, 0) + 1
    lines = [
        f"rdo: {constraint.apply} rate constraint, {constraint.entropy_model.name}, covers {len(constraint.names)} of "
        f"{len(trainable)} parameters, {constraint.count:,} of {total:,} weights ({constraint.count / total:.1%})"
    ]
    for (name, size), count in groups.items():
        lines.append(f"  {count:3d} x {name} {list(size)}")
    return "\n".join(lines)


def _covers(selection: Selection, name: str, parameter: Tensor) -> bool:
    if callable(selection):
        return selection(name, parameter)
    if selection not in ("matrices", "all"):
        raise ConfigError(
            f"parameters must be 'matrices', 'all' or a function of name and parameter; got {selection!r}"
        )
    return selection == "all" or parameter.ndim >= 2
