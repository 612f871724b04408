"""What a loss says of weights: how sensitive it is to each tensor, and to each input of a matrix."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from rdo.channel_sensitivity import ChannelSensitivity
from rdo.errors import ConfigError

ENOUGH = 512
"""Inputs of a matrix, for each of its columns, after which no more are recorded."""
_STRIPS = 4
"""In which sums of x x^T are made, each from the diagonal on: a symmetric matrix is known by half of it."""


@dataclass(frozen=True)
class Gradients:
    """What a model's gradients over some batches ask of the steps of its weights.

    Attributes:
        sensitivity: mean squared gradient of the loss of a batch, over the weights of each tensor.
        within: the same of their rows and columns.
    """

    sensitivity: dict[str, float]
    within: ChannelSensitivity


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model over some batches.

    Attributes:
        gradients: of its weights.
        inputs: for matrices that multiply activations, the mean of x x^T over all activations x: float32 [in, in].
            Its rows and columns are those of the matrix's last axis, or its first where ``transposed`` names it.
        transposed: matrices stored as [in, out], as GPT-2's are.
    """

    gradients: Gradients
    inputs: dict[str, Tensor]
    transposed: frozenset[str]


def steps_by_sensitivity(sensitivity: Sequence[float]) -> list[float]:
    """Steps relative to one another, in proportion to one over the roots; where it is 0, the largest of the others.

    Raises:
        ConfigError: all are 0.
    """
    known = [value for value in sensitivity if value > 0.0]
    if not known:
        raise ConfigError("all gradients were zero: the loss does not depend on the weights to be coded")
    return [math.sqrt(min(known) / (value or min(known))) for value in sensitivity]


class InputRecorder:
    """Sums up the inputs of a model's matrices while it runs, until :meth:`stop` or there are enough.

    Matrices that multiply the very same tensor, as those of queries, keys and values do, have one sum.

    Padding does not count, where the model is called with ``attention_mask=``, [batch, length], 0 where it is.

    Args:
        parameters: those to record, by name; only such as linear layers (or transformers' Conv1D) multiply by are.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._name_of = {id(parameter): name for name, parameter in parameters.items()}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._same_as: dict[str, str] = {}
        self._latest: Callable[[], Tensor | None] = lambda: None
        self._latest_name = ""
        self._modules = [
            module
            for module in model.modules()
            if id(getattr(module, "weight", None)) in self._name_of and _multiplies(module)
        ]
        self.transposed = {self._name_of[id(m.weight)] for m in self._modules if not isinstance(m, nn.Linear)}
        self._shown: Tensor | None = None
        self._hooks = [module.register_forward_pre_hook(self._record) for module in self._modules]
        self._hooks.append(model.register_forward_pre_hook(self._see_mask, with_kwargs=True))

    @property
    def seen(self) -> bool:
        """Whether there were inputs of matrices that make up at least half of the weights of all there are."""
        sizes = {self._name_of[id(m.weight)]: cast(Tensor, m.weight).numel() for m in self._modules}
        found = sum(size for name, size in sizes.items() if name in self._counts or name in self._same_as)
        return 0 < sum(sizes.values()) <= 2 * found

    def _see_mask(self, module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        mask = options.get("attention_mask")
        self._shown = mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _record(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():  # what is compiled now would go on when this stops, and be compiled again
            return
        name, x = self._name_of[id(module.weight)], arguments[0]
        if x is self._latest() and name not in self._counts:
            self._same_as[name] = self._latest_name
        if name in self._same_as:
            return
        self._latest, self._latest_name = weakref.ref(x), name
        if self._counts.get(name, 0) >= ENOUGH * x.shape[-1]:
            return
        x = x.detach()
        if self._shown is not None and x.shape[:-1] == self._shown.shape:
            x = x[self._shown]
        x = x.reshape(-1, x.shape[-1]).to(torch.float32)
        size = x.shape[1]
        if name not in self._sums:
            self._sums[name] = x.new_zeros(size, size)
        strip = -(-size // _STRIPS)
        for begin in range(0, size, strip):
            self._sums[name][begin : begin + strip, begin:].addmm_(x[:, begin : begin + strip].T, x[:, begin:])
        self._counts[name] = self._counts.get(name, 0) + len(x)

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far: tensors and numbers by the names of the matrices."""
        sums, counts, same = dict(self._sums), dict(self._counts), dict(self._same_as)
        return {"sums": sums, "counts": counts, "same_as": same, "transposed": sorted(self.transposed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._counts, self._same_as = dict(state["counts"]), dict(state["same_as"])
        self.transposed = set(state["transposed"])

    def add_replicas(self) -> None:
        """Add up what the processes of data-parallel training have recorded; all of them must call it."""
        for module in self._modules:
            weight = cast(Tensor, module.weight)
            name = self._name_of[id(weight)]
            if name in self._same_as:
                continue
            size = weight.shape[0 if name in self.transposed else -1]
            total = self._sums.get(name, weight.new_zeros(size, size, dtype=torch.float32))
            count = torch.tensor([self._counts.get(name, 0)], device=weight.device)
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(count)
            if int(count):
                self._sums[name], self._counts[name] = total, int(count)

    def stop(self) -> dict[str, Tensor]:
        """Stop recording; the mean of x x^T of each matrix's inputs, float32 [in, in]."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        means = {name: _mirrored(total) / self._counts[name] for name, total in self._sums.items()}
        return means | {name: means[other] for name, other in self._same_as.items()}


def calibrate(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], names: Sequence[str]
) -> Calibration:
    """Run the model over batches and measure its parameters of these names; its gradients are cleared.

    Args:
        batches: what ``loss`` takes.
        loss: the mean loss of a batch, a scalar to call ``backward`` on.

    Raises:
        ConfigError: there is no batch.
    """
    parameters = {name: model.get_parameter(name) for name in names}
    recorder = InputRecorder(model, parameters)
    try:
        gradients = measure_gradients(model, batches, loss, parameters)
    finally:
        inputs = recorder.stop()
    return Calibration(gradients, inputs, frozenset(recorder.transposed))


def measure_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    parameters: Mapping[str, Tensor],
    before: Gradients | None = None,
) -> Gradients:
    """What :func:`calibrate` measures of the model's gradients, which are cleared; it raises the same.

    Args:
        before: of the same batches with other weights, of which and these the mean is taken.
    """
    squares, within = dict.fromkeys(parameters, 0.0), ChannelSensitivity(parameters)
    if before is not None:
        within.load_state_dict(before.within.state_dict())
    seen = 0
    try:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    squares[name] += float(torch.linalg.vector_norm(parameter.grad)) ** 2 / parameter.numel()
            within.add()
            seen += 1
    finally:
        model.zero_grad(set_to_none=True)
    if not seen:
        raise ConfigError("calibration needs at least one batch")
    sensitivity = {name: value / seen for name, value in squares.items()}
    if before is not None:
        sensitivity = {name: (value + before.sensitivity[name]) / 2 for name, value in sensitivity.items()}
    return Gradients(sensitivity, within)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]) -> float:
    """Of the batches, each counted once."""
    losses = [float(loss(model, batch)) for batch in batches]
    return sum(losses) / len(losses)


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix whose diagonal and what is above it are those of ``upper``."""
    return upper.triu() + upper.triu(1).T


def _multiplies(module: nn.Module) -> bool:
    """Whether a module multiplies its input by its weight matrix: a linear layer, or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
