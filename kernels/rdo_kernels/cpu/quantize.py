"""Quantisation of contiguous tensors on a CPU, by the compiled pool.

The functions are those of :mod:`rdo_kernels.quantize`, which sends here what :func:`takes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.chunks import TENSOR, quantization_table
from rdo_kernels.cpu import pool
from rdo_kernels.types import BOUNDS, LIMITS

_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)


def takes(weight: Tensor) -> bool:
    """Whether the loops know these weights."""
    return weight.is_cpu and weight.dtype in _WEIGHTS and weight.is_contiguous()


def quantize(
    weights: Sequence[Tensor],
    symbols: Sequence[Tensor],
    steps: Sequence[Tensor],
    dead_zone: float,
    counts: Tensor | None,
) -> Tensor:
    """Fill ``symbols``, add to ``counts`` and return how many weights of each tensor have no symbol."""
    lost = np.zeros(len(weights), np.int64)
    dtype = symbols[0].dtype
    zone = int(np.float32(0.5 + dead_zone).view(np.int32))
    options = [BOUNDS[dtype], int(counts is not None), len(weights), zone, LIMITS[dtype]]
    _run(weights, symbols, steps, 0, options, None if counts is None else counts.numpy(), lost)
    return torch.from_numpy(lost)


def dequantize(symbols: Sequence[Tensor], steps: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Fill ``weights``."""
    _run(weights, symbols, steps, 1, [0] * 5, None, np.zeros(0, np.int64))


def _run(
    weights: Sequence[Tensor],
    symbols: Sequence[Tensor],
    steps: Sequence[Tensor],
    back: int,
    options: list[int],
    counts: NDArray[np.int64] | None,
    lost: NDArray[np.int64],
) -> None:
    from rdo_kernels.cpu import quantize_loops

    chunks = quantization_table(weights, symbols, steps)
    kinds = np.array([_WEIGHTS.index(weight.dtype) for weight in weights], np.int64)
    chunks = np.ascontiguousarray(np.column_stack([chunks, kinds[chunks[:, TENSOR]]]))
    assert counts is None or counts.flags.c_contiguous
    addresses = [chunks.ctypes.data, 0 if counts is None else counts.ctypes.data, lost.ctypes.data]
    width = symbols[0].element_size()
    job = np.array([0, *chunks.shape, back, width, *options, *addresses], np.int64)
    pool.share(quantize_loops.work, job, len(chunks))
