"""How much a loss asks of the rows and columns of matrices, and the steps that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rdo.channels import Axis, ChannelSteps, channels
from rdo.coders import EntropyCoder, make_coders
from rdo.coders.context import Context

_REACH = 4
"""Half octaves from the step of a tensor to the finest and the coarsest of its rows or columns. The squared gradient
tells what a small error costs; beyond two octaves errors are no longer small."""
_COST_BITS = 4.0
"""Of a row or column in a file."""
_WORTH = 0.02
"""Bits a weight that channels must save."""


class ChannelSensitivity:
    """Mean squared gradients of the rows and of the columns of tensors, summed over optimizer steps.

    Args:
        weights: by name; those of two or more axes are measured.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight for name, weight in weights.items() if weight.ndim > 1 and weight.numel()}
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Look at the gradients that the weights have now."""
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            rows = weight.grad.reshape(-1, weight.shape[-1])
            found = [torch.linalg.vector_norm(rows, dim=dim, dtype=torch.float32) for dim in (1, 0)]
            squares = [
                norm.to(torch.float64).square() / rows.shape[dim] for norm, dim in zip(found, (1, 0), strict=True)
            ]
            known = self._sums.get(name)
            self._sums[name] = (
                (squares[0], squares[1]) if known is None else (known[0] + squares[0], known[1] + squares[1])
            )

    def steps(self) -> dict[str, ChannelSteps]:
        """By name, the steps of rows or columns relative to the tensor's, of the tensors in which they save bits.

        A step goes with one over the root of the squared gradient, as those of tensors do
        (:class:`rdo.target.SizeTarget`), in half octaves. If some row (or column) met no gradient, as those of words
        that did not occur, nothing is known of it, and the rows have one step.
        """
        found = {}
        for name, sums in self._sums.items():
            axes: tuple[Axis, Axis] = ("rows", "columns")
            each = [_relative(squares) for squares in sums]
            saved = [
                -math.inf
                if own is None
                else _saved(own) - _COST_BITS * channels(self._weights[name].shape, axis) / self._weights[name].numel()
                for own, axis in zip(each, axes, strict=True)
            ]
            best = saved.index(max(saved))
            if saved[best] > _WORTH:
                own = each[best]
                assert own is not None
                exponents = own.log2().neg().round().to(torch.int8).cpu()
                found[name] = ChannelSteps(1.0, axes[best], exponents)
        return found

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Tensors by name."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._sums = {}
        for name, (rows, columns) in state.items():
            device = self._weights[name].device
            self._sums[name] = (rows.to(device, torch.float64), columns.to(device, torch.float64))


def tells_channels(coder: EntropyCoder | str | Sequence[EntropyCoder | str]) -> bool:
    """Whether one of the coders learns what row and column a symbol is in: the others have one table for a tensor, and
    what rows differ in would cost them more than finer steps save."""
    return any(isinstance(each, Context) for each in make_coders(coder))


def _relative(squares: Tensor) -> Tensor | None:
    """Squared gradients relative to their mean, no farther from it than steps can go; None if one is 0."""
    if not bool((squares > 0.0).all()):
        return None
    return (squares / squares.mean()).clamp(2.0**-_REACH, 2.0**_REACH)


def _saved(relative: Tensor) -> float:
    """Bits a weight at the same error, at high rates: half of the mean's logarithm less the logarithms' mean."""
    return 0.5 * float(relative.mean().log2() - relative.log2().mean())
