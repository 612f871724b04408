"""The rate term over contiguous tensors on a GPU. The functions are those of :mod:`rdo_kernels.operations`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdo_kernels.gpu import kernels
from rdo_kernels.gpu.kernels import TYPES
from rdo_kernels.gpu.launch import Geometry, addresses, block, device_function, geometry, laws_of
from rdo_kernels.types import Preconditioner, RateFamily, Scales


def moments(weights: Sequence[Tensor]) -> Tensor:
    cut = geometry(weights)
    return moments_from(sums_of(weights, cut), cut)


def sums_of(weights: Sequence[Tensor], cut: Geometry) -> Tensor:
    """Sum |w|, sum w^2, zeros and max |w| of chunks: float64 [rows, 4]. A cut may have further groups of tensors."""
    places, sums = addresses(weights), _table(cut, 4)
    for span in cut.spans:
        options = TYPES[span.dtypes[0]], places.aligned, block(1024)
        kernels.moments[(span.rows,)](cut.chunks, places.table, sums, span.first, *options, num_warps=8)
    return sums


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> Tensor:
    return _run(kernels.RATE, weights, weights, _laws(weights, family, theta, [0.0] * len(weights)), family)[0]


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
) -> Tensor:
    laws = _laws(weights, family, theta, scales)
    return _run(kernels.ADD_SLOPE, weights, gradients, laws, family, written=gradients)[0]


def subtract_rate_gradient(
    weights: Sequence[Tensor], family: RateFamily, theta: Tensor, scales: Scales
) -> tuple[Tensor, Tensor]:
    laws = _laws(weights, family, theta, scales)
    return _run(kernels.SUBTRACT_SLOPE, weights, weights, laws, family, written=weights)


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    preconditioners: Sequence[Preconditioner] | None = None,
) -> tuple[Tensor, Tensor]:
    if preconditioners is None:
        laws = _laws(weights, family, theta, scales)
        return _run(kernels.SHRINK, weights, weights, laws, family, written=weights)
    seconds = [item.second_moment for item in preconditioners]
    factors = [item.factor for item in preconditioners]
    factor = torch.stack([torch.as_tensor(own, dtype=torch.float64) for own in factors])
    floor = torch.tensor([item.eps for item in preconditioners], dtype=torch.float64)
    laws = _laws(weights, family, theta, scales, (factor, floor))
    return _run(kernels.SHRINK_SCALED, weights, seconds, laws, family, written=weights)


def add_up(partials: Tensor, cut: Geometry, summed: int) -> Tensor:
    """Sums over each tensor's chunks, in order, of the first ``summed`` columns; the maximum of the others."""
    tensors = cut.bounds.shape[0]
    sums = partials.new_empty(tensors, *partials.shape[1:])
    kernels.add_up[(tensors,)](partials, cut.bounds, sums, 1 if partials.ndim == 1 else partials.shape[1], summed)
    return sums


def moments_from(sums: Tensor, cut: Geometry) -> Tensor:
    """Moments of tensors, float64 [T, 5], from the sums of their chunks."""
    return torch.cat([cut.counts.unsqueeze(1), add_up(sums, cut, 3)], dim=1)


def _table(cut: Geometry, *columns: int) -> Tensor:
    return torch.empty(cut.rows, *columns, dtype=torch.float64, device=cut.chunks.device)


def _laws(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    divisors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    return laws_of(family, theta, scales, weights[0].device, divisors)


def _run(
    action: int,
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    laws: Tensor,
    family: RateFamily,
    written: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """One launch for each pair of dtypes, and those that add up the chunks in order; bits, and moments of a step."""
    assert family.device_fn is not None
    cut, places = geometry(weights, others), addresses(weights, others)
    partials, sums = _table(cut), _table(cut, 4)
    for span in cut.spans:
        kernels.rate[(span.rows,)](
            cut.chunks,
            places.table,
            laws,
            partials,
            sums,
            span.first,
            device_function(family.device_fn),
            laws.shape[1] - 3,
            *(TYPES[dtype] for dtype in span.dtypes),
            action,
            places.aligned,
            block(1024),
            num_warps=8,
            enable_fp_fusion=False,
        )
    torch.autograd.graph.increment_version(written)
    bits = add_up(partials, cut, 1)
    return bits, moments_from(sums, cut) if action >= kernels.SUBTRACT_SLOPE else bits
