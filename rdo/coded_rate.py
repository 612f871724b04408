"""What weights would cost if they were quantised and coded now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdo.quantizers import Quantizer
from rdo.sharding import whole


@dataclass(frozen=True)
class CodedRate:
    """The rate of some weights under a quantizer.

    Attributes:
        parameters: number of weights.
        bits_per_parameter: order-0 entropy of the symbols, a histogram for each tensor: what an ideal coder pays,
            tables and steps aside.
        sparsity: share of weights that are quantised to zero.
    """

    parameters: int
    bits_per_parameter: float
    sparsity: float


@torch.no_grad()
def coded_rate(named_weights: Iterable[tuple[str, Tensor]], quantizer: Quantizer) -> CodedRate:
    """Quantise weights, one tensor at a time, and count.

    Sharded tensors are gathered, one at a time, in which every process must take part.

    Raises:
        NonFiniteWeightsError, SymbolOverflowError: a tensor cannot be quantised.
    """
    bits, zeros, total = 0.0, 0, 0
    for name, weight in named_weights:
        histogram = quantizer.histogram(whole(weight), name)
        counts = histogram.counts.to(torch.float64)
        bits += float((counts * torch.log2(weight.numel() / counts)).sum())
        zeros += int(histogram.counts[histogram.symbols == 0].sum())
        total += weight.numel()
    return CodedRate(total, bits / max(total, 1), zeros / max(total, 1))
