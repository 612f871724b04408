"""The rate term over contiguous tensors on a GPU. The functions are those of :mod:`rdo_kernels.operations`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdo_kernels.gpu import kernels
from rdo_kernels.gpu.kernels import TYPES
from rdo_kernels.gpu.launch import Table, block, by_dtype, device_function, laws_of, table
from rdo_kernels.types import MOMENTS, Preconditioner, RateFamily


def moments(weights: Sequence[Tensor]) -> Tensor:
    out = torch.empty(len(weights), len(MOMENTS), dtype=torch.float64, device=weights[0].device)
    for (dtype,), rows in by_dtype(weights).items():
        some = [weights[row] for row in rows]
        chunks = table(some)
        partials = torch.empty(chunks.rows, 4, dtype=torch.float64, device=out.device)
        if chunks.rows:
            kernels.moments[(chunks.rows,)](
                chunks.chunks, partials, TYPES[dtype], chunks.aligned, block(2048), num_warps=8
            )
        out[rows] = moments_from(partials, chunks, some)
    return out


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> Tensor:
    return _run(kernels.RATE, weights, weights, family, theta, [0.0] * len(weights))


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
) -> Tensor:
    return _run(kernels.ADD_SLOPE, weights, gradients, family, theta, scales, written=gradients)


def subtract_rate_gradient(
    weights: Sequence[Tensor], family: RateFamily, theta: Tensor, scales: Sequence[float]
) -> Tensor:
    return _run(kernels.SUBTRACT_SLOPE, weights, weights, family, theta, scales, written=weights)


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    preconditioners: Sequence[Preconditioner] | None = None,
) -> Tensor:
    if preconditioners is None:
        return _run(kernels.SHRINK, weights, weights, family, theta, scales, written=weights)
    seconds = [item.second_moment for item in preconditioners]
    divisors = [(item.factor, item.eps) for item in preconditioners]
    return _run(kernels.SHRINK_SCALED, weights, seconds, family, theta, scales, divisors, written=weights)


def add_up(partials: Tensor, chunks: Table, tensors: int, summed: int) -> Tensor:
    """Sums over each tensor's chunks, in order, of the first ``summed`` columns; the maximum of the others."""
    sums = torch.empty(tensors, *partials.shape[1:], dtype=torch.float64, device=partials.device)
    columns = 1 if partials.ndim == 1 else partials.shape[1]
    kernels.add_up[(tensors,)](partials, chunks.bounds, sums, columns, summed)
    return sums


def moments_from(partials: Tensor, chunks: Table, weights: Sequence[Tensor]) -> Tensor:
    """Moments of tensors, float64 [T, 5], from the sums of their chunks."""
    counts = torch.tensor([[float(weight.numel())] for weight in weights], dtype=torch.float64)
    return torch.cat([counts.to(partials.device), add_up(partials, chunks, len(weights), 3)], dim=1)


def _run(
    action: int,
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    divisors: Sequence[tuple[float, float]] | None = None,
    written: Sequence[Tensor] = (),
) -> Tensor:
    """One launch for each pair of dtypes, and one that adds up the chunks in order; float64 [T] of bits."""
    assert family.device_fn is not None
    device = weights[0].device
    laws = laws_of(family, theta, scales, device, divisors)
    bits = torch.empty(len(weights), dtype=torch.float64, device=device)
    for (weight_dtype, other_dtype), rows in by_dtype(weights, others).items():
        chunks = table([weights[row] for row in rows], [others[row] for row in rows])
        partials = torch.empty(chunks.rows, dtype=torch.float64, device=device)
        if chunks.rows:
            kernels.rate[(chunks.rows,)](
                chunks.chunks,
                laws[rows],
                partials,
                device_function(family.device_fn),
                laws.shape[1] - 3,
                TYPES[weight_dtype],
                TYPES[other_dtype],
                action,
                chunks.aligned,
                block(2048),
                num_warps=8,
            )
        bits[rows] = add_up(partials, chunks, len(rows), 1)
    torch.autograd.graph.increment_version(written)
    return bits
