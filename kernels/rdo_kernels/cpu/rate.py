"""The rate term on a CPU: compiled loops for power laws over contiguous float32, cache blocks for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.cpu import blocks
from rdo_kernels.cpu.chunks import chunk_table, over_threads, sum_by_tensor
from rdo_kernels.types import MOMENTS, Preconditioner, RateFamily

A = TypeVar("A")

SCALE, FACTOR, FLOOR, LAW = 3, 4, 5, 6
"""Columns of the compiled loops' laws, after (nu, c, eps), and how many there are."""

_LEAST_EPS = 1e-30
"""Below this, |w| + eps may be denormal, which the compiled logarithm does not take."""


def moments(weights: Sequence[Tensor]) -> Tensor:
    """Return count, sum |w|, sum w^2, number of zeros and max |w| of each tensor: float64 [T, 5].

    Sums are accumulated in float64 in a fixed order. NaN and infinity propagate into the sums.
    """
    out = torch.zeros(len(weights), len(MOMENTS), dtype=torch.float64)
    fast = [index for index, weight in enumerate(weights) if _is_plain(weight)]
    slow = _without(fast, len(weights))
    out[slow] = blocks.moments(_take(weights, slow))
    if fast:
        from rdo_kernels.cpu import power

        chunks = chunk_table(_take(weights, fast))
        sums = np.zeros((len(chunks), 4))
        over_threads(lambda span: power.moments(chunks[span], sums[span]), len(chunks))
        largest = np.zeros(len(fast))
        with np.errstate(invalid="ignore"):
            np.maximum.at(largest, chunks[:, 3], sums[:, 3])  # NaN propagates
        counts = np.array([weights[index].numel() for index in fast], np.float64)
        columns = [counts, *sum_by_tensor(sums[:, :3], chunks, len(fast)).T, largest]
        out[fast] = torch.from_numpy(np.stack(columns, axis=1))
    return out


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> Tensor:
    """Return the sum of the training rate over each tensor, in bits: float64 [T]."""
    bits = torch.zeros(len(weights), dtype=torch.float64)
    laws, fast, slow = _laws(weights, None, family, theta)
    bits[fast] = _compiled("rate", _take(weights, fast), None, laws)
    bits[slow] = blocks.rate(_take(weights, slow), family, _take_theta(theta, slow))
    return bits


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
) -> Tensor:
    """Add ``scale * slope(w)`` to each gradient in place and return the rate of each tensor, in bits: float64 [T]."""
    bits = torch.zeros(len(weights), dtype=torch.float64)
    laws, fast, slow = _laws(weights, gradients, family, theta)
    laws[:, SCALE] = _take(scales, fast)
    written = _take(gradients, fast)
    bits[fast] = _compiled("add_slope", _take(weights, fast), written, laws, written=written)
    bits[slow] = blocks.add_rate_gradient(
        _take(weights, slow), _take(gradients, slow), family, _take_theta(theta, slow), _take(scales, slow)
    )
    return bits


def subtract_rate_gradient(
    weights: Sequence[Tensor], family: RateFamily, theta: Tensor, scales: Sequence[float]
) -> Tensor:
    """Do ``w -= scale * slope(w)`` in place and return the rate of each tensor before that, in bits: float64 [T].

    Nothing keeps a weight from crossing zero: this is the decoupled step of BackSlash's published code.
    """
    bits = torch.zeros(len(weights), dtype=torch.float64)
    laws, fast, slow = _laws(weights, None, family, theta)
    laws[:, SCALE] = [-scale for scale in _take(scales, fast)]
    written = _take(weights, fast)
    bits[fast] = _compiled("add_slope", written, written, laws, written=written)
    bits[slow] = blocks.subtract_rate_gradient(
        _take(weights, slow), family, _take_theta(theta, slow), _take(scales, slow)
    )
    return bits


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    preconditioners: Sequence[Preconditioner] | None = None,
) -> Tensor:
    """Shrink each weight by ``t = scale * |slope(w)|``, stopping at zero: ``w <- sign(w) * max(|w| - t, 0)``.

    With preconditioners, t is divided elementwise by what the optimizer divides its own step by. Returns the rate of
    each tensor before the step, in bits: float64 [T].
    """
    bits = torch.zeros(len(weights), dtype=torch.float64)
    seconds = None if preconditioners is None else [preconditioner.second_moment for preconditioner in preconditioners]
    laws, fast, slow = _laws(weights, seconds, family, theta)
    laws[:, SCALE] = _take(scales, fast)
    if preconditioners is not None:
        laws[:, FACTOR] = [preconditioner.factor for preconditioner in _take(preconditioners, fast)]
        laws[:, FLOOR] = [preconditioner.eps for preconditioner in _take(preconditioners, fast)]
    written = _take(weights, fast)
    others = None if seconds is None else _take(seconds, fast)
    bits[fast] = _compiled("shrink", written, others, laws, seconds is not None, written=written)
    bits[slow] = blocks.proximal_step(
        _take(weights, slow),
        family,
        _take_theta(theta, slow),
        _take(scales, slow),
        None if preconditioners is None else _take(preconditioners, slow),
    )
    return bits


def _laws(
    weights: Sequence[Tensor], others: Sequence[Tensor] | None, family: RateFamily, theta: Tensor
) -> tuple[NDArray[np.float64], list[int], list[int]]:
    """The laws of the tensors that the compiled loops take, which those are, and which are left."""
    power_law = family.power_law(theta)
    if power_law is None:
        return np.zeros((0, LAW)), [], list(range(len(weights)))
    parameters = power_law.detach().cpu().expand(len(weights), -1).numpy()
    fast = []
    for index, (weight, (nu, _, eps)) in enumerate(zip(weights, parameters, strict=True)):
        other = weight if others is None else others[index]
        if _is_plain(weight) and _is_plain(other) and (eps >= _LEAST_EPS or nu in (1.0, 2.0)):
            fast.append(index)
    laws = np.zeros((len(fast), LAW))
    laws[:, :3] = parameters[fast]
    return laws, fast, _without(fast, len(weights))


def _compiled(
    name: str,
    weights: Sequence[Tensor],
    others: Sequence[Tensor] | None,
    laws: NDArray[np.float64],
    *options: bool,
    written: Sequence[Tensor] = (),
) -> Tensor:
    """Run a compiled loop over the chunks of all tensors; float64 [tensors] of bits."""
    if not weights:
        return torch.zeros(0, dtype=torch.float64)
    from rdo_kernels.cpu import power

    loop = getattr(power, name)
    chunks = chunk_table(weights, others)
    bits = np.zeros(len(chunks))
    over_threads(lambda span: loop(chunks[span], laws, *options, bits[span]), len(chunks))
    for tensor in written:
        torch.autograd.graph.increment_version(tensor)  # autograd must know, as of any write in place
    return torch.from_numpy(sum_by_tensor(bits, chunks, len(weights)))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _take(items: Sequence[A], indices: Sequence[int]) -> list[A]:
    return [items[index] for index in indices]


def _take_theta(theta: Tensor, indices: Sequence[int]) -> Tensor:
    return theta[list(indices)] if theta.ndim == 2 else theta


def _without(indices: Sequence[int], count: int) -> list[int]:
    return sorted(set(range(count)) - set(indices))
