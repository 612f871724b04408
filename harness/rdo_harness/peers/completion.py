"""Rounding of what a peer left alone, and the checkpoint that holds both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import rdo
from rdo.quantizers import AllocatedQuantizer, Quantizer
from rdo_harness.peers.expression import Expression

if TYPE_CHECKING:
    from rdo_harness.methods.base import Context

MOST_LOSS = 0.01
"""By which rounding the rest may raise the validation cross entropy, as a share of it, by default."""


@dataclass(frozen=True)
class Completion:
    """How the rest is rounded.

    Attributes:
        steps: of every tensor of the rest, by name.
        chosen: the configuration of the quantizer; None if there is no rest.
        cross_entropy: validation cross entropy with the rest rounded; ``before`` without.
    """

    steps: dict[str, float]
    chosen: dict[str, Any] | None
    cross_entropy: float
    before: float

    def facts(self) -> dict[str, Any]:
        """Columns of the row."""
        chosen = self.chosen or {}
        return {
            "completion_step": chosen.get("step"),
            "completion_relative_step": chosen.get("ratio"),
            "completion_cross_entropy": self.cross_entropy,
            "completion_cross_entropy_before": self.before,
        }


@torch.no_grad()
def complete(
    model: nn.Module, done: Collection[str], quantizers: Sequence[Quantizer], context: Context, most_loss: float
) -> Completion:
    """Choose the coarsest quantizer for the compressible tensors not in ``done``, by the validation split.

    Coarsest is the one with the largest squared error. It may raise the validation cross entropy by ``most_loss``, a
    share of it; if all do by more, the finest is taken. A coarser one is taken to raise it more, so that the search can
    halve what is left. The model's weights are what they were afterwards.
    """
    compressible = context.architecture.compressible
    rest = {n: p for n, p in model.named_parameters() if compressible(n, p) and n not in done}
    before = context.validation_cross_entropy(model)
    if not rest:
        return Completion({}, None, before, before)
    kept = {name: parameter.detach().clone() for name, parameter in rest.items()}

    def rounded(quantizer: Quantizer) -> dict[str, Tensor]:
        return {name: quantizer.quantize(weight, name).dequantize() for name, weight in kept.items()}

    def error(quantizer: Quantizer) -> float:
        return sum(float((weight - kept[name]).square().sum()) for name, weight in rounded(quantizer).items())

    @cache
    def loss(place: int) -> float:
        for name, weight in rounded(coarsest_first[place]).items():
            rest[name].copy_(weight)
        return context.validation_cross_entropy(model)

    coarsest_first = sorted(quantizers, key=error, reverse=True)
    places = range(len(coarsest_first) - 1)  # the finest is what remains if none of these will do
    place = bisect_left(places, True, key=lambda each: loss(each) <= before * (1 + most_loss))
    chosen, found = coarsest_first[place], loss(place)
    for name, parameter in rest.items():
        parameter.copy_(kept[name])
    steps = {name: float(chosen.steps(weight, name)) for name, weight in kept.items()}
    return Completion(steps, chosen.config(), found, before)


def save_expressed(
    model: nn.Module,
    expressions: Mapping[str, Expression],
    steps: Mapping[str, float],
    path: Path,
    coders: Sequence[str],
) -> None:
    """Write a compressed checkpoint in which some matrices are a peer's symbols and the rest is rounded by steps."""
    plain = model.state_dict()
    state = dict(plain)
    for name, expression in expressions.items():
        state |= expression.entries(name)
        tied = [other for other, tensor in plain.items() if tensor.data_ptr() == plain[name].data_ptr()]
        state |= dict.fromkeys(tied, state[name])
    coded = AllocatedQuantizer({**dict.fromkeys(expressions, 1.0), **steps}, bits=0.0, distortion="absolute")
    rdo.save_compressed(state, path, quantizer=coded, coder=coders, compressible=_coded(coded.step_of))


def _coded(names: Collection[str]) -> Callable[[str, Tensor], bool]:
    return lambda name, _: name in names
