"""Quantisation over cache blocks, in eager expressions: for any dtype, layout and device.

The functions are those of :mod:`rdo_kernels.quantize`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rdo_kernels.types import BOUNDS, LIMITS

_BLOCK_PER_THREAD = 1 << 16


def quantize(
    weights: Sequence[Tensor],
    symbols: Sequence[Tensor],
    steps: Sequence[Tensor],
    dead_zone: float,
    counts: Tensor | None,
) -> Tensor:
    """Fill ``symbols``, add to ``counts`` and return how many weights of each tensor have no symbol."""
    lost = torch.zeros(len(weights), dtype=torch.int64)
    for index, (weight, symbol, step) in enumerate(zip(weights, symbols, steps, strict=True)):
        bound, limit = BOUNDS[symbol.dtype], LIMITS[symbol.dtype]
        flat, out = weight.detach().reshape(-1), symbol.view(-1)  # a copy where strides leave no other way
        for begin, end in _blocks(flat):
            scaled = flat[begin:end].to(torch.float32) / _steps(step, flat.numel(), begin, end)
            magnitude = scaled.abs()
            without = ~(magnitude <= limit)  # NaN as well
            scaled = scaled.round_().masked_fill_(without | (magnitude < 0.5 + dead_zone), 0.0).to(torch.int32)
            out[begin:end] = scaled
            lost[index] += without.sum().cpu()
            if counts is not None:
                bins = torch.where(without | (scaled.abs() > bound), 2 * bound + 1, scaled + bound)
                counts[index] += torch.bincount(bins, minlength=2 * bound + 2)
    return lost


def dequantize(symbols: Sequence[Tensor], steps: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Fill ``weights``."""
    for symbol, step, weight in zip(symbols, steps, weights, strict=True):
        flat, out = symbol.reshape(-1), weight.view(-1)
        for begin, end in _blocks(flat):
            out[begin:end] = flat[begin:end].to(torch.float32) * _steps(step, flat.numel(), begin, end)


def _blocks(flat: Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of blocks that stay in the caches."""
    size = _BLOCK_PER_THREAD * torch.get_num_threads()
    for begin in range(0, flat.numel(), size):
        yield begin, min(begin + size, flat.numel())


def _steps(step: Tensor, count: int, begin: int, end: int) -> Tensor:
    """The step, or that of each weight of a block."""
    if step.numel() == 1:
        return step.reshape(())
    return step[torch.arange(begin, end, device=step.device) // (count // step.numel())]
