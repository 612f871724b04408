"""What the GPU command times of quantisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import rdo_kernels
from rdo_harness.gpu.timing import Operation


def operations(weights: Sequence[Tensor]) -> list[Operation]:
    """Quantisation with a histogram, and back, of float32 weights; steps of half a standard deviation.

    The references are the same in eager torch. Floors are 4 bytes of a weight and 1 of its symbol, each moved once; of
    a weight that is copied and rounded, 4 read and 8 written.
    """
    rounded, copies = ([weight.clone() for weight in weights] for _ in range(2))
    steps = [0.5 * weight.square().mean().sqrt() for weight in weights]
    symbols = rdo_kernels.quantize(weights, steps, dtype=torch.int8).symbols

    def eager_quantize() -> list[tuple[Tensor, Tensor]]:
        found = []
        for weight, step in zip(weights, steps, strict=True):
            symbol = torch.round(weight / step).clamp_(-128, 127).to(torch.int8)
            found.append((symbol, torch.bincount(symbol.reshape(-1).to(torch.int64) + 128, minlength=256)))
        return found

    def eager_dequantize() -> list[Tensor]:
        return [symbol * step for symbol, step in zip(symbols, steps, strict=True)]

    def eager_keep_and_round() -> Tensor:
        sums = []
        for weight, copy, step in zip(rounded, copies, steps, strict=True):
            copy.copy_(weight)
            weight.div_(step).round_().mul_(step)
            sums.append(torch.stack([copy.abs().sum(dtype=torch.float64), copy.square().sum(dtype=torch.float64)]))
        return torch.stack(sums)

    return [
        Operation(
            "keep + round",
            12,
            lambda: rdo_kernels.keep_and_round(rounded, copies, steps),
            "eager",
            eager_keep_and_round,
        ),
        Operation(
            "quantise + histogram",
            5,
            lambda: rdo_kernels.quantize(weights, steps, dtype=torch.int8),
            "eager",
            eager_quantize,
        ),
        Operation("dequantise", 5, lambda: rdo_kernels.dequantize(symbols, steps), "eager", eager_dequantize),
    ]
