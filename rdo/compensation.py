"""Rounding the columns of a matrix one after another, each one's error made good by those that follow.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, arXiv 2210.17323), after Optimal Brain Surgeon: the error that counts is
that of the layer's output over the inputs it was seen with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rdo.calibration import InputRecorder
    from rdo.coding_grid import CodingGrid

_DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of a matrix of inputs."""
_BLOCK = 128

Rounding = Callable[[Tensor, float], Tensor]
"""Makes integers of the values of a column; the other argument is what a squared error counts, relative to the mean."""


def compensation_factor(inputs: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the mean of x x^T, damped; float32 [in, in], as its argument."""
    damped = inputs.to(torch.float64).clone()
    diagonal = damped.diagonal()
    diagonal += _DAMPING * max(float(diagonal.mean()), 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).to(torch.float32)
    return factor


def compensate(matrix: Tensor, factor: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Round a matrix in units of its step.

    Args:
        matrix: float32 [out, in].
        factor: of its inputs.
        rounding: of a column.

    Returns:
        The integers, and the values that they were made of: the matrix, changed to make up for the columns before.
    """
    left = matrix.T.contiguous()  # a column of the matrix lies in one piece
    values, symbols = torch.empty_like(left), torch.empty_like(left)
    diagonal = factor.diagonal()
    weights = diagonal.pow(-2)
    counts = (weights / weights.mean()).tolist()
    for begin in range(0, len(left), _BLOCK):
        end = min(begin + _BLOCK, len(left))
        block = left[begin:end]
        errors = torch.empty_like(block)
        for row, at in enumerate(range(begin, end)):
            values[at] = block[row]
            symbols[at] = rounding(block[row], counts[at])
            torch.div(block[row] - symbols[at], diagonal[at], out=errors[row])
            block[row:].addr_(factor[at, at:end], errors[row], alpha=-1.0)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1.0)
    return symbols.T, values.T


@torch.no_grad()
def compensate_weights(grid: CodingGrid, recorder: InputRecorder) -> None:
    """Move the weights of a grid to where rounding them to nearest costs least, by the inputs recorded, in place."""
    inputs = recorder.stop()
    for name, parameter, steps in zip(grid.names, grid.parameters, grid.all_steps(), strict=True):
        if name in inputs:
            turned = name in recorder.transposed
            each = steps.unsqueeze(1) if steps.ndim == 1 else steps
            each = each.T if turned and each.ndim == 2 else each
            matrix = (parameter.T if turned else parameter).to(torch.float32) / each
            factor = compensation_factor(in_steps(inputs[name], each))
            _, values = compensate(matrix, factor, lambda column, _: column.round())
            parameter.copy_((values * each).T if turned else values * each)


def in_steps(inputs: Tensor, steps: Tensor) -> Tensor:
    """The mean of x x^T for weights in units of their steps, [], [out, 1] or [1, in]: inputs are the larger for it."""
    if steps.ndim < 2 or steps.shape[1] == 1:
        return inputs
    return inputs * steps * steps.T
