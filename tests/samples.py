"""Weights of every data type, size and layout for the tests of the kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(0,), (), (1,), (2,), (97,), (65535,), (65536,), (65537,), (3, 65536), (0, 5), (257, 263), (17, 3, 5, 7)]


def sample(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Weights of a trained scale with a tenth of exact zeros, some of them negative."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, generator=generator) * 0.05
    weight[torch.rand(size, generator=generator) < 0.1] *= 0.0
    return weight.to(dtype)


def layouts(weight: Tensor) -> dict[str, Tensor]:
    """The same values of a 4-d tensor in other memory layouts."""
    strided = torch.full((*weight.shape[:-1], 3 * weight.shape[-1]), math.nan, dtype=weight.dtype)[..., 1::3]
    return {
        "contiguous": weight.clone(),
        "channels_last": weight.clone(memory_format=torch.channels_last),
        "transposed": weight.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": strided.copy_(weight),
    }
