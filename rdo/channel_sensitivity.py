"""How much a loss asks of the rows and columns of matrices, and the steps that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rdo.channels import AXES, Axis, ChannelSteps, channels
from rdo.coders import EntropyCoder, make_coders
from rdo.coders.context import Context
from rdo.errors import ConfigError

SHARE = 0.5
"""Octaves from the step of a tensor to that of a row or column, of those that the squared gradients ask for. They tell
what a small error costs, and at the rates that count errors are not small: rows of gates that are open have hardly a
gradient, and matter."""
_REACH = 4
"""Half octaves from the step of a tensor to the finest and the coarsest of its rows or columns."""
_COST_BITS = 4.0
"""Of a row or column in a file."""
_LEAST = 64
"""Weights in a row or column that has a step of its own, which costs each a sixteenth of a bit then. At a bit a weight
there is less to save than at the high rates by which savings are told; kernels of convolutions have rows of three."""
_WORTH = 0.02
"""Bits a weight that channels must save."""
_GROUP_BITS = 1200.0
"""And bits of the whole tensor, at least: about what a kind of tensors of their own takes in a file's header."""


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

    def steps(self, share: float = SHARE) -> dict[str, ChannelSteps]:
        """By name, the steps of rows or columns relative to the tensor's, of the tensors in which they save bits.

        Args:
            share: how far apart, positive: octaves, of those that the squared gradients ask for.

        A step goes with one over the fourth root of the squared gradient, half way between the tensor's and what (2) of
        docs/method.md would give a tensor of such gradients, in half octaves. If some row (or column) met no gradient,
        as those of words that did not occur, nothing is known of it, and the rows have one step; so have those of less
        than 64 weights.
        """
        found = {}
        for name, sums in self._sums.items():
            size = self._weights[name].shape
            both = [_candidate(squares, axis, size, share) for squares, axis in zip(sums, AXES, strict=True)]
            best = max(both, key=_bits)
            if best.bits > max(_WORTH * size.numel(), _GROUP_BITS):
                assert best.relative is not None
                exponents = best.relative.log2().neg().round().to(torch.int8).cpu()
                found[name] = ChannelSteps(1.0, best.axis, exponents)
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


Coders: TypeAlias = EntropyCoder | str | Sequence[EntropyCoder | str]


def tells_channels(coder: Coders) -> bool:
    """Whether one of the coders learns what row and column a symbol is in: the others have one table for a tensor, and
    what rows differ in would cost them more than finer steps save."""
    return any(isinstance(each, Context) for each in make_coders(coder))


def measures_channels(channels: bool | None, allocation: str, coder: Coders, *, sharded: bool) -> bool:
    """Whether rows and columns are to have steps of their own: what was asked for, or what :func:`tells_channels` says.

    Raises:
        ConfigError: they are to, and cannot.
    """
    possible = allocation in ("sensitivity", "balanced") and not sharded
    if channels is None:
        return possible and tells_channels(coder)
    if channels and not possible:
        raise ConfigError(
            'rows and columns have steps of their own with allocation="sensitivity" or "balanced" and where parameters '
            "are not sharded; give channels=False"
        )
    return channels


class _Candidate(NamedTuple):
    """What steps of rows or columns go by, relative to their tensor's, and the bits that they save."""

    axis: Axis
    relative: Tensor | None
    bits: float


def _candidate(squares: Tensor, axis: Axis, size: torch.Size, share: float) -> _Candidate:
    if size.numel() < _LEAST * channels(size, axis) or not bool((squares > 0.0).all()):
        return _Candidate(axis, None, -math.inf)
    reach = _REACH / share
    squares = (squares / squares.mean()).clamp(2.0**-reach, 2.0**reach)
    relative = squares**share
    # A weight at high rates and the same error, which goes with square times step^2, or square over relative.
    saved = 0.5 * float(squares.mean().log2() - (squares / relative).mean().log2() - relative.log2().mean())
    return _Candidate(axis, relative, saved * size.numel() - _COST_BITS * channels(size, axis))


def _bits(candidate: _Candidate) -> float:
    return candidate.bits
