"""The rate term over cache blocks, for any family, dtype, layout and device; no temporary of the size of the weights.

Each operation walks the weights in blocks that stay in a core's cache and evaluates the family's own eager expressions
there.

Legend: T tensors, K parameters of the family; theta is float64 of size [K], or [T, K] for parameters per tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.types import MOMENTS, AdamW, Preconditioner, RateFamily, Scales, adamw_factors

_BLOCK_PER_THREAD = 1 << 16
_FLOATS = (torch.float32, torch.float64)


def moments(weights: Sequence[Tensor]) -> Tensor:
    """Return count, sum |w|, sum w^2, number of zeros and max |w| of each tensor: float64 [T, 5].

    Sums are accumulated in float64 in a fixed order. NaN and infinity propagate into the sums.
    """
    out = torch.zeros(len(weights), len(MOMENTS), dtype=torch.float64)
    for row, weight in zip(out, weights, strict=True):
        row[0] = weight.numel()
        buffer = torch.empty(min(_block_size(), weight.numel()), dtype=torch.float64, device=weight.device)
        for (block,) in aligned_blocks(weight.detach()):
            # One copy makes the block contiguous and exact in float64; every later pass reads it from the cache.
            values = buffer[: block.numel()]
            values.view(block.shape).copy_(block).abs_()
            zeros = block.numel() - torch.count_nonzero(values)
            row[1:4] += torch.stack([values.sum(), values.dot(values), zeros]).cpu()
            row[4] = torch.maximum(row[4], values.amax().cpu())
    return out


def rate(weights: Sequence[Tensor], family: RateFamily, theta: Tensor) -> Tensor:
    """Return the sum of the training rate over each tensor, in bits: float64 [T]."""
    total = torch.zeros(len(weights), dtype=torch.float64)
    for index, weight, law in _with_theta(weights, theta):
        for (block,) in aligned_blocks(weight.detach()):
            total[index] += family.rate_and_slope(_upcast(block), law)[0].sum().cpu()
    return total


def add_rate_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
) -> Tensor:
    """Add ``scale * slope(w)`` to each gradient in place and return the rate of each tensor, in bits: float64 [T]."""
    total = torch.zeros(len(weights), dtype=torch.float64)
    for index, weight, law in _with_theta(weights, theta):
        for block, gradient in aligned_blocks(weight.detach(), gradients[index]):
            bits, slope = family.rate_and_slope(_upcast(block), law)
            # Rounded before it is added, so that autograd's sum of the two gradients has the same bits.
            gradient.add_(slope.mul_(scales[index]).to(gradient.dtype))
            total[index] += bits.sum().cpu()
    return total


def subtract_rate_gradient(
    weights: Sequence[Tensor], family: RateFamily, theta: Tensor, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Do ``w -= scale * slope(w)`` in place and return the rate of each tensor before that, in bits: float64 [T].

    Nothing keeps a weight from crossing zero: this is the decoupled step of BackSlash's published code.
    """
    total, sums = _nothing(len(weights))
    for index, weight, law in _with_theta(weights, theta):
        for (block,) in aligned_blocks(weight.detach()):
            values = _upcast(block)
            bits, slope = family.rate_and_slope(values, law)
            block.copy_(values.sub_(slope.mul_(scales[index])))
            total[index] += bits.sum().cpu()
            _add(sums[index], block)
    return total, sums


def proximal_step(
    weights: Sequence[Tensor],
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    preconditioners: Sequence[Preconditioner] | None = None,
) -> tuple[Tensor, Tensor]:
    """Shrink each weight by ``t = scale * |slope(w)|``, stopping at zero: ``w <- sign(w) * max(|w| - t, 0)``.

    With preconditioners, t is divided elementwise by what the optimizer divides its own step by. Returns the rate of
    each tensor before the step, in bits: float64 [T].
    """
    total, sums = _nothing(len(weights))
    for index, weight, law in _with_theta(weights, theta):
        preconditioner = preconditioners[index] if preconditioners else None
        tensors = [weight.detach()] if preconditioner is None else [weight.detach(), preconditioner.second_moment]
        for block, *second in aligned_blocks(*tensors):
            values = _upcast(block)
            bits, slope = family.rate_and_slope(values, law)
            shrink = slope.abs().mul_(scales[index])
            if preconditioner is not None:
                root = second[0].to(shrink.dtype).sqrt()
                shrink.div_(root.mul_(preconditioner.factor).add_(preconditioner.eps))
            block.copy_(values.sub_(values.clamp(-shrink, shrink)))
            total[index] += bits.sum().cpu()
            _add(sums[index], block)
    return total, sums


def keep_and_round(
    weights: Sequence[Tensor], kept: Sequence[Tensor], steps: Sequence[Tensor], apart: Sequence[int]
) -> Tensor:
    """Copy weights to ``kept`` and round them in place; the moments of what is kept, float64 [T, 5]."""
    for weight, copy, step, between in zip(weights, kept, steps, apart, strict=True):
        if step.numel() == 1:
            for block, own in aligned_blocks(weight.detach(), copy):
                own.copy_(block)
                round_block(own, step.reshape(()), block)
        elif weight.numel():
            copy.copy_(weight.detach())
            each = step.reshape(-1).repeat_interleave(between).repeat(weight.numel() // (between * step.numel()))
            round_block(copy, each.reshape(weight.shape), weight.detach())
    return moments(kept)


def round_block(values: Tensor, step: Tensor, out: Tensor) -> None:
    """Fill ``out`` with the nearest multiples of a float32 step, divided in float32, rounded half to even."""
    if values.dtype == out.dtype == torch.float32:
        torch.div(values, step, out=out).round_().mul_(step)
    else:
        out.copy_(values.to(torch.float32).div_(step).round_().mul_(step))


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
    total, sums = _nothing(len(weights))
    factors = adamw_factors(settings).tolist()
    for index, weight, law in _with_theta(weights, theta):
        decay, beta1, beta2, step, root_factor, eps, gradient_factor = factors[index]
        scale = float(scales[index])
        groups = (weight.detach(), gradients[index].detach(), firsts[index], seconds[index])
        for block, gradient, first, second in aligned_blocks(*groups):
            value = _upcast(block).clone()
            direction = _upcast(gradient) * gradient_factor
            if scale != 0.0 and apply == "gradient":
                bits, slope = family.rate_and_slope(value, law)
                direction.add_(slope, alpha=scale)
                total[index] += bits.sum().cpu()
            first.lerp_(direction.to(first.dtype), 1.0 - beta1)
            second.mul_(beta2).addcmul_(direction, direction, value=1.0 - beta2)
            divisor = _upcast(second).sqrt().mul_(root_factor).add_(eps)
            value.mul_(decay).addcdiv_(_upcast(first), divisor, value=-step)
            if scale != 0.0 and apply != "gradient":
                bits, slope = family.rate_and_slope(value, law)
                total[index] += bits.sum().cpu()
                if apply == "decoupled":
                    value.sub_(slope, alpha=scale)
                else:
                    shrink = slope.abs().mul_(scale)
                    if apply == "preconditioned":
                        shrink.div_(divisor)
                    value.sub_(value.clamp(-shrink, shrink))
            block.copy_(value)
            _add(sums[index], block)
    return total, sums


def _nothing(tensors: int) -> tuple[Tensor, Tensor]:
    """Where the rates and the moments of tensors are added up."""
    return torch.zeros(tensors, dtype=torch.float64), torch.zeros(tensors, len(MOMENTS), dtype=torch.float64)


def _add(sums: Tensor, block: Tensor) -> None:
    """Add the moments of a block to those of its tensor."""
    more = moments([block])[0]
    sums[:4] += more[:4]
    sums[4] = torch.maximum(sums[4], more[4])


def _with_theta(weights: Sequence[Tensor], theta: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    for index, weight in enumerate(weights):
        law = theta[index] if theta.ndim == 2 else theta
        yield index, weight, law.to(weight.device)


def _upcast(block: Tensor) -> Tensor:
    return block if block.dtype in _FLOATS else block.to(torch.float32)


def _block_size() -> int:
    """Elements per block: enough for every thread, and what each thread touches stays in its core's cache."""
    return _BLOCK_PER_THREAD * torch.get_num_threads()


def aligned_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield aligned views of at most a block's elements that cover tensors of one size, whatever their layout."""
    first, limit = tensors[0], _block_size()
    if all(tensor.is_contiguous() for tensor in tensors):
        flat = [tensor.view(-1) for tensor in tensors]
        for start in range(0, first.numel(), limit):
            yield tuple(tensor[start : start + limit] for tensor in flat)
    elif first.numel() <= limit:
        yield tensors
    else:
        axis = max(range(first.ndim), key=lambda i: first.shape[i])
        half = first.shape[axis] // 2
        for start, length in ((0, half), (half, first.shape[axis] - half)):
            yield from aligned_blocks(*(tensor.narrow(axis, start, length) for tensor in tensors))
