"""The rate term over any tensors: each goes to the fastest backend that takes it.

``backend`` names one: ``"triton"`` (contiguous tensors on a GPU, families with a device function), ``"compiled"``
(contiguous float32 on a CPU, power laws) or ``"blocks"`` (everything). By default the tensor decides.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdo_kernels.types import MOMENTS, AdamW, Preconditioner, RateFamily

A = TypeVar("A")

BACKENDS = {
    "triton": "rdo_kernels.gpu.backend",
    "compiled": "rdo_kernels.cpu.compiled",
    "blocks": "rdo_kernels.cpu.blocks",
}


def moments(weights: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    """Return count, sum |w|, sum w^2, number of zeros and max |w| of each tensor: float64 [T, 5].

    Sums are accumulated in float64 in a fixed order. NaN and infinity propagate into the sums.
    """
    out = torch.zeros(len(weights), len(MOMENTS), dtype=torch.float64, device=_device(weights))
    for module, rows in _groups(weights, [], None, backend):
        out[rows] = module.moments(_take(weights, rows)).to(out.device)
    return out


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor, *, backend: str | None = None) -> Tensor:
    """Return the sum of the training rate over each tensor, in bits: float64 [T]."""
    bits = torch.zeros(len(weights), dtype=torch.float64, device=_device(weights))
    for module, rows in _groups(weights, [], family, backend):
        bits[rows] = module.rate(_take(weights, rows), family, _laws(theta, rows)).to(bits.device)
    return bits


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    *,
    backend: str | None = None,
) -> Tensor:
    """Add ``scale * slope(w)`` to each gradient in place and return the rate of each tensor, in bits: float64 [T]."""
    bits = torch.zeros(len(weights), dtype=torch.float64, device=_device(weights))
    for module, rows in _groups(weights, [gradients], family, backend):
        bits[rows] = module.add_rate_gradient(
            _take(weights, rows), _take(gradients, rows), family, _laws(theta, rows), _take(scales, rows)
        ).to(bits.device)
    return bits


def subtract_rate_gradient(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    *,
    backend: str | None = None,
) -> Tensor:
    """Do ``w -= scale * slope(w)`` in place and return the rate of each tensor before that, in bits: float64 [T].

    Nothing keeps a weight from crossing zero: this is the decoupled step of BackSlash's published code.
    """
    bits = torch.zeros(len(weights), dtype=torch.float64, device=_device(weights))
    for module, rows in _groups(weights, [], family, backend):
        bits[rows] = module.subtract_rate_gradient(
            _take(weights, rows), family, _laws(theta, rows), _take(scales, rows)
        ).to(bits.device)
    return bits


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    preconditioners: Sequence[Preconditioner] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Shrink each weight by ``t = scale * |slope(w)|``, stopping at zero: ``w <- sign(w) * max(|w| - t, 0)``.

    With preconditioners, t is divided elementwise by what the optimizer divides its own step by. Returns the rate of
    each tensor before the step, in bits: float64 [T].
    """
    bits = torch.zeros(len(weights), dtype=torch.float64, device=_device(weights))
    others = [] if preconditioners is None else [[item.second_moment for item in preconditioners]]
    for module, rows in _groups(weights, others, family, backend):
        some = None if preconditioners is None else _take(preconditioners, rows)
        bits[rows] = module.proximal_step(
            _take(weights, rows), family, _laws(theta, rows), _take(scales, rows), some
        ).to(bits.device)
    return bits


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    settings: Sequence[AdamW],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    apply: str,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of AdamW with the rate term, in one pass over memory.

    Args:
        firsts, seconds: Adam's running means of gradients and of their squares, updated in place like the weights.
        scales: factor of each tensor's slope; 0 is plain AdamW.
        apply: one of :data:`rdo_kernels.APPLY`.

    Returns:
        The rate of each tensor in bits (float64 [T], 0 where the scale is 0), of the weights that the slope was taken
        at; and the :func:`moments` of the written weights, from which the next step's law is fitted.
    """
    device = _device(weights)
    bits = torch.zeros(len(weights), dtype=torch.float64, device=device)
    sums = torch.zeros(len(weights), len(MOMENTS), dtype=torch.float64, device=device)
    for module, rows in _groups(weights, [gradients, firsts, seconds], family, backend):
        tensors = [_take(group, rows) for group in (weights, gradients, firsts, seconds)]
        found = module.adamw_step(
            *tensors, _take(settings, rows), family, _laws(theta, rows), _take(scales, rows), apply
        )
        bits[rows], sums[rows] = (result.to(device) for result in found)
    return bits, sums


def _groups(
    weights: Sequence[Tensor], others: Sequence[Sequence[Tensor]], family: RateFamily | None, backend: str | None
) -> Iterator[tuple[Any, list[int]]]:
    """Each backend that has work, with the indices of the tensors that go there."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    from rdo_kernels.cpu import compiled
    from rdo_kernels.gpu import launch

    groups: dict[str, list[int]] = {}
    for index, tensors in enumerate(zip(weights, *others, strict=True)):
        name = backend
        if name is None and compiled.takes(tensors, family):
            name = "compiled"
        elif name is None:
            name = "triton" if launch.takes(tensors, family) else "blocks"
        groups.setdefault(name, []).append(index)
    for name, rows in groups.items():
        yield importlib.import_module(BACKENDS[name]), rows


def _device(weights: Sequence[Tensor]) -> torch.device:
    return weights[0].device if weights else torch.device("cpu")


def _take(items: Sequence[A], rows: Sequence[int]) -> list[A]:
    return [items[row] for row in rows]


def _laws(theta: Tensor, rows: Sequence[int]) -> Tensor:
    return theta[list(rows)] if theta.ndim == 2 else theta
