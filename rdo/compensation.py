"""Rounding the columns of a matrix one after another, each one's error made good by those that follow.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, arXiv 2210.17323), after Optimal Brain Surgeon: the error that counts is
that of the layer's output over the inputs it was seen with.

What is added to a weight to make good for others spreads it, which costs bits: variance v more of a weight whose mean
square is s^2 takes ``v / (2 ln 2 s^2)``. A bit is worth ``2 ln 2 D`` of the squared error D that a weight's rounding
leaves, the slope of the distortion-rate function. So a change of a weight counts by its square times ``D / s^2`` more,
and that is what is added to the diagonal of H = mean x x^T. D is the mean squared error of rounding to nearest, times
what of the mean square of an input those after it do not explain: little at four bits, some tenths of it at one. GPTQ
adds a hundredth of the mean diagonal at all rates, which is the least here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rdo.calibration import InputRecorder
    from rdo.coding_grid import CodingGrid

_LEAST = 0.01
"""Of the mean diagonal, added to the diagonal of a matrix of inputs for the sake of one that is not of full rank."""
_BLOCK = 128
_PASSES = 4
"""Over a model's matrices until the entropy is close to what was asked for, at most."""

Rounding = Callable[[Tensor, float], Tensor]
"""Makes integers of the values of a column; the other argument is what a squared error counts, relative to the mean."""


class Factor:
    """The upper Cholesky factor of the inverse of ``inputs``, damped, for matrices that multiply them.

    Args:
        inputs: the mean of x x^T, in units that are the same multiple of the steps (:func:`in_steps`); [in, in].
    """

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs
        self._damping, self._factor = math.nan, inputs  # none yet
        left = self._upper(_LEAST).diagonal().square().mean()
        self._left = float(left / inputs.diagonal().mean().clamp(min=1e-12))

    def at(self, matrix: Tensor) -> Tensor:
        """For a matrix in units of its steps, float32 [out, in]: float32 [in, in]; made again where that matters."""
        errors = (matrix - matrix.round()).square().mean()
        damping = self._left * float(errors / matrix.square().mean().clamp(min=1e-12))
        damping = max(2.0 ** (round(2.0 * math.log2(max(damping, 1e-9))) / 2.0), _LEAST)
        if damping != self._damping:
            upper = self._upper(damping)
            one = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
            self._factor = torch.linalg.solve_triangular(upper, one, upper=True).to(torch.float32)
            self._damping = damping
        return self._factor

    def _upper(self, damping: float) -> Tensor:
        """U of H = U U^T, damped, float64: the Cholesky factor of H in turned order. So H^-1 = (U^-1)^T U^-1."""
        damped = self._inputs.to(torch.float64).flip(0, 1)
        diagonal = damped.diagonal()
        diagonal += damping * max(float(diagonal.mean()), 1e-12)
        turned: Tensor = torch.linalg.cholesky(damped)
        return turned.flip(0, 1)


def compensate(matrix: Tensor, factor: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Round a matrix in units of its step.

    Args:
        matrix: float32 [out, in].
        factor: of its inputs (:class:`Factor`).
        rounding: of a column.

    Returns:
        The integers, and the values that they were made of: the matrix, changed to make up for the columns before.
    """
    left = matrix.T.clone(memory_format=torch.contiguous_format)  # a column of the matrix lies in one piece
    symbols = torch.empty_like(left)
    weights = factor.diagonal().pow(-2)
    counts, roots = (weights / weights.mean()).tolist(), factor.diagonal().tolist()
    for begin in range(0, len(left), _BLOCK):
        block = left[begin : begin + _BLOCK]
        end = begin + len(block)
        errors, within = torch.empty_like(block), factor[begin:end, begin:end]
        columns = zip(block.unbind(), symbols[begin:end].unbind(), errors.unbind(), strict=True)
        for row, (column, symbol, error) in enumerate(columns):
            symbol.copy_(rounding(column, counts[begin + row]))
            torch.sub(column, symbol, out=error).div_(roots[begin + row])
            block[row + 1 :].addr_(within[row, row + 1 :], error, alpha=-1.0)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1.0)
    return symbols.T, left.T


class Compensation:
    """Moves the weights of a grid to where rounding them to nearest costs least, by the inputs recorded.

    To make good for the errors of others takes bits of its own, some 0.2 of them at 1.4 bits a weight, which steps have
    to allow for.

    Args:
        grid: its parameters hold the weights as they are.
        recorder: of the inputs of some of them; it stops.
    """

    def __init__(self, grid: CodingGrid, recorder: InputRecorder) -> None:
        self._grid, self._inputs, self._transposed = grid, recorder.stop(), recorder.transposed
        self._weights = dict(zip(grid.names, grid.parameters, strict=True))
        self._originals = {name: self._weights[name].detach().clone() for name in self._inputs}
        self._factors: dict[str, Factor] = {}
        self._spent = 0.0

    @torch.no_grad()
    def fit(self, bits: float, close: float = 0.01) -> None:
        """Scale all steps such that the weights that are moved then have an entropy of ``bits``, to ``close`` of them.

        Raises:
            ConfigError: as :meth:`rdo.coding_grid.CodingGrid.fit`.
        """
        for _ in range(_PASSES):
            for name, original in self._originals.items():
                self._weights[name].copy_(original)
            before = max(bits - self._spent, bits / 2)
            self._grid.fit(before)
            for name, steps in zip(self._grid.names, self._grid.all_steps(), strict=True):
                if name in self._originals:
                    self._move(name, steps)
            found = float(self._grid.entropy_bits())
            self._spent = found - before
            if abs(found - bits) < close:
                break

    def _move(self, name: str, steps: Tensor) -> None:
        turned, weight = name in self._transposed, self._originals[name]
        each = steps.unsqueeze(1) if steps.ndim == 1 else steps
        each = each.T if turned and each.ndim == 2 else each
        if name not in self._factors:  # a multiple common to all steps of a matrix does not matter
            self._factors[name] = Factor(in_steps(self._inputs[name], each))
        matrix = (weight.T if turned else weight).to(torch.float32) / each
        _, values = compensate(matrix, self._factors[name].at(matrix), lambda column, _: column.round())
        self._weights[name].copy_((values * each).T if turned else values * each)


def in_steps(inputs: Tensor, steps: Tensor) -> Tensor:
    """The mean of x x^T for weights in units of their steps, [], [out, 1] or [1, in]: inputs are the larger for it."""
    if steps.ndim < 2 or steps.shape[1] == 1:
        return inputs
    return inputs * steps * steps.T
