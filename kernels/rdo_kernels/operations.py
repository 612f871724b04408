"""The rate term over any tensors: each goes to the fastest backend that takes it.

``backend`` names one: ``"triton"`` (contiguous tensors on a GPU, families with a device function), ``"compiled"``
(contiguous float32 on a CPU, power laws) or ``"blocks"`` (everything). By default the tensor decides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.quantize import check_columns, has_columns
from rdo_kernels.types import AdamW, Preconditioner, RateFamily, Scales

BACKENDS = {
    "triton": "rdo_kernels.gpu.backend",
    "compiled": "rdo_kernels.cpu.compiled",
    "blocks": "rdo_kernels.cpu.blocks",
}


def moments(weights: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    """Return count, sum |w|, sum w^2, number of zeros and max |w| of each tensor: float64 [T, 5].

    Sums are accumulated in float64 in a fixed order. NaN and infinity propagate into the sums.
    """
    (sums,) = _each([weights], None, backend, lambda module, take: (module.moments(take(weights)),))
    return sums


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor, *, backend: str | None = None) -> Tensor:
    """Return the sum of the training rate over each tensor, in bits: float64 [T]."""

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        return (module.rate(take(weights), family, _laws(theta, take)),)

    return _each([weights], family, backend, call)[0]


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    *,
    backend: str | None = None,
) -> Tensor:
    """Add ``scale * slope(w)`` to each gradient in place and return the rate of each tensor, in bits: float64 [T]."""

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        rest = family, _laws(theta, take), take(scales)
        return (module.add_rate_gradient(take(weights), take(gradients), *rest),)

    return _each([weights, gradients], family, backend, call)[0]


def subtract_rate_gradient(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Do ``w -= scale * slope(w)`` in place, in one pass over memory.

    Nothing keeps a weight from crossing zero: this is the decoupled step of BackSlash's published code.

    Returns:
        The rate of each tensor before the step, in bits (float64 [T]), and the :func:`moments` of the written weights.
    """

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        bits, sums = module.subtract_rate_gradient(take(weights), family, _laws(theta, take), take(scales))
        return bits, sums

    bits, sums = _each([weights], family, backend, call)
    return bits, sums


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    preconditioners: Sequence[Preconditioner] | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Shrink each weight by ``t = scale * |slope(w)|``, stopping at zero: ``w <- sign(w) * max(|w| - t, 0)``.

    With preconditioners, t is divided elementwise by what the optimizer divides its own step by.

    Returns:
        The rate of each tensor before the step, in bits (float64 [T]), and the :func:`moments` of the written weights.
    """

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        some = None if preconditioners is None else take(preconditioners)
        bits, sums = module.proximal_step(take(weights), family, _laws(theta, take), take(scales), some)
        return bits, sums

    others = [] if preconditioners is None else [[item.second_moment for item in preconditioners]]
    bits, sums = _each([weights, *others], family, backend, call)
    return bits, sums


def keep_and_round(
    weights: Sequence[Tensor], kept: Sequence[Tensor], steps: Sequence[Tensor], *, backend: str | None = None
) -> Tensor:
    """Copy weights to ``kept`` and round them to multiples of their steps in place, in one pass over memory.

    A weight becomes ``round(w / step) * step``: divided in float32, rounded half to even, multiplied in float32.

    Args:
        kept: tensors of the sizes and data types of the weights, to write to.
        steps: for each tensor contiguous float32 steps on its device, positive and finite: one; [R], one for each row,
            a row being as many neighbours in memory order as there are weights for each step; or [1, C], one for each
            place in the last axis.

    Returns:
        The :func:`moments` of what is kept, float64 [T, 5].

    Raises:
        ValueError: the steps of a tensor are not as many as it has rows, or columns.
    """

    spans = [steps_apart(*each) for each in zip(range(len(weights)), weights, steps, strict=True)]

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        return (module.keep_and_round(take(weights), take(kept), take(steps), take(spans)),)

    return _each([weights, kept], None, backend, call)[0]


def steps_apart(index: int, weight: Tensor, step: Tensor) -> int:
    """After how many weights the next of a tensor's steps follows, the first one coming after the last; at least 1.

    Raises:
        ValueError: the steps are not as many as there are rows, or columns.
    """
    count, steps = weight.numel(), step.numel()
    if count and (count % steps if steps else True):
        raise ValueError(f"tensor {index}: {steps} steps do not divide {count} weights into rows")
    if has_columns(step):
        check_columns(index, weight, step)
        return 1
    return count // steps if count else 1


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
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of AdamW with the rate term, in one pass over memory.

    Args:
        firsts, seconds: Adam's running means of gradients and of their squares, updated in place like the weights.
        settings: rows of :class:`AdamW`.
        scales: factor of each tensor's slope; 0 is plain AdamW.
        apply: one of :data:`rdo_kernels.APPLY`.

    Returns:
        The rate of each tensor in bits (float64 [T], 0 where the scale is 0), of the weights that the slope was taken
        at; and the :func:`moments` of the written weights, from which the next step's law is fitted.
    """
    rows = np.asarray(settings, np.float64).reshape(len(weights), -1)
    groups = [weights, gradients, firsts, seconds]

    def call(module: Any, take: Take) -> tuple[Tensor, ...]:
        rest = take(rows), family, _laws(theta, take), take(scales), apply
        bits, sums = module.adamw_step(*map(take, groups), *rest)
        return bits, sums

    bits, sums = _each(groups, family, backend, call)
    return bits, sums


Take = Callable[[Any], Any]
"""Picks the items of those tensors that one backend handles, from a list, tensor or array of one item for each."""


def _each(
    groups: Sequence[Sequence[Tensor]],
    family: RateFamily | None,
    backend: str | None,
    call: Callable[[Any, Take], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Call each backend that has work, and put the rows of the results in the order of the tensors."""
    shares = _shares(groups, family, backend)
    if len(shares) == 1:
        return call(importlib.import_module(BACKENDS[next(iter(shares))]), lambda items: items)
    results: list[Tensor] = []
    for name, rows in shares.items():
        found = call(importlib.import_module(BACKENDS[name]), partial(_take, rows))
        if not results:
            results = [part.new_empty(len(groups[0]), *part.shape[1:], device=groups[0][0].device) for part in found]
        for result, part in zip(results, found, strict=True):
            result[rows] = part.to(result.device)
    return tuple(results)


def _shares(groups: Sequence[Sequence[Tensor]], family: RateFamily | None, backend: str | None) -> dict[str, list[int]]:
    """The backends that have work, with the indices of the tensors that go there; ``blocks`` if there are none."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend is not None or not groups[0]:
        return {backend or "blocks": list(range(len(groups[0])))}
    from rdo_kernels.cpu import compiled
    from rdo_kernels.gpu import launch

    shares: dict[str, list[int]] = {}
    for index, tensors in enumerate(zip(*groups, strict=True)):
        if compiled.takes(tensors, family):
            shares.setdefault("compiled", []).append(index)
        else:
            shares.setdefault("triton" if launch.takes(tensors, family) else "blocks", []).append(index)
    return shares


def _take(rows: list[int], items: Any) -> Any:
    return items[rows] if isinstance(items, Tensor | np.ndarray) else [items[row] for row in rows]


def _laws(theta: Tensor, take: Take) -> Any:
    """Those of the tensors, if each has its own."""
    return take(theta) if theta.ndim == 2 else theta
