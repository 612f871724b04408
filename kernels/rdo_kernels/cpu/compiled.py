"""The rate term of power laws over contiguous float32 on a CPU, by the compiled pool.

The functions are those of :mod:`rdo_kernels.operations`, which sends here what :func:`takes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.chunks import TENSOR, Chunks, address_table, chunks_of, sum_by_tensor
from rdo_kernels.cpu import pool
from rdo_kernels.types import APPLY, AdamW, Preconditioner, RateFamily, Scales, adamw_factors

POWER = "rdo_kernels.device.power:power"
PARETO = "rdo_kernels.device.pareto:pareto"
_SCALE, _FACTOR, _FLOOR, _COLUMNS = 3, 4, 5, 6
"""Columns of the loops' laws, after (nu, c, eps), and how many there are."""


def takes(tensors: Sequence[Tensor], family: RateFamily | None) -> bool:
    """Whether the loops know the family (None: no family is involved) and these tensors."""
    known = family is None or family.device_fn in (POWER, PARETO)
    return known and all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for t in tensors)


def moments(weights: Sequence[Tensor]) -> Tensor:
    chunks = chunks_of(weights)
    sums = np.empty((len(chunks), 4))
    pool.run("moments", chunks, address_table([weights]), sums=sums)
    return _moments(sums, chunks, weights)


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> Tensor:
    return _run("rate", weights, weights, _laws(weights, family, theta))[0]


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
) -> Tensor:
    laws = _laws(weights, family, theta)
    laws[:, _SCALE] = scales
    return _run("add_slope", weights, gradients, laws, written=gradients)[0]


def subtract_rate_gradient(
    weights: Sequence[Tensor], family: RateFamily, theta: Tensor, scales: Scales
) -> tuple[Tensor, Tensor]:
    laws = _laws(weights, family, theta)
    laws[:, _SCALE] = -np.asarray(scales, np.float64)
    return _run("add_slope", weights, weights, laws, 1, written=weights)


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    preconditioners: Sequence[Preconditioner] | None = None,
) -> tuple[Tensor, Tensor]:
    laws = _laws(weights, family, theta)
    laws[:, _SCALE] = scales
    if preconditioners is None:
        return _run("shrink", weights, weights, laws, written=weights)
    laws[:, _FACTOR] = [float(preconditioner.factor) for preconditioner in preconditioners]
    laws[:, _FLOOR] = [preconditioner.eps for preconditioner in preconditioners]
    seconds = [preconditioner.second_moment for preconditioner in preconditioners]
    return _run("shrink", weights, seconds, laws, 1, written=weights)


def keep_and_round(
    weights: Sequence[Tensor], kept: Sequence[Tensor], steps: Sequence[Tensor], apart: Sequence[int]
) -> Tensor:
    chunks = chunks_of(weights)
    counts = [step.numel() for step in steps]
    places = np.column_stack([address_table([weights, kept, steps]).reshape(-1, 3), counts, apart]).astype(np.int64)
    sums = np.empty((len(chunks), 4))
    pool.run("keep_and_round", chunks, places, sums=sums)
    torch.autograd.graph.increment_version([*weights, *kept])
    return _moments(sums, chunks, weights)


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    settings: Sequence[AdamW] | NDArray[np.float64],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    apply: str,
) -> tuple[Tensor, Tensor]:
    laws = _laws(weights, family, theta)
    laws[:, _SCALE] = scales
    chunks = chunks_of(weights)
    bits, sums = np.empty(len(chunks)), np.empty((len(chunks), 4))
    places = address_table([weights, gradients, firsts, seconds])
    pool.run("adamw", chunks, places, laws, adamw_factors(settings), bits, sums, option=APPLY.index(apply))
    torch.autograd.graph.increment_version([*weights, *firsts, *seconds])
    return torch.from_numpy(sum_by_tensor(bits, chunks, len(weights))), _moments(sums, chunks, weights)


def _moments(sums: NDArray[np.float64], chunks: Chunks, weights: Sequence[Tensor]) -> Tensor:
    """The moments of tensors from the sums of their chunks."""
    largest = np.zeros(len(weights))
    with np.errstate(invalid="ignore"):
        np.maximum.at(largest, chunks[:, TENSOR], sums[:, 3])  # NaN propagates
    counts = np.array([weight.numel() for weight in weights], np.float64)
    columns = [counts, *sum_by_tensor(sums[:, :3], chunks, len(weights)).T, largest]
    return torch.from_numpy(np.stack(columns, axis=1))


def _laws(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> NDArray[np.float64]:
    laws = np.zeros((len(weights), _COLUMNS))
    parameters = family.device_theta(theta).cpu().numpy()
    if family.device_fn == PARETO:  # (scale, c): the power law of exponent 0
        laws[:, 2], laws[:, 1] = parameters[..., 0], parameters[..., 1]
    else:
        laws[:, :_SCALE] = parameters
    return laws


def _run(
    action: str,
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    laws: NDArray[np.float64],
    option: int = 0,
    written: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Rate of each tensor, float64 [T], and the moments of the weights if they are what is written."""
    chunks = chunks_of(weights)
    bits, sums = np.zeros(len(chunks)), np.zeros((len(chunks), 4))
    pool.run(action, chunks, address_table([weights, others]), laws, bits=bits, sums=sums, option=option)
    torch.autograd.graph.increment_version(written)  # autograd must know, as of any write in place
    return torch.from_numpy(sum_by_tensor(bits, chunks, len(weights))), _moments(sums, chunks, weights)
