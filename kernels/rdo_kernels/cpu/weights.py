"""Decoded symbols to weights on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.streams import Rows

_COMPILED = (torch.float32, torch.bfloat16, torch.float16)


def store(symbols: NDArray[np.int32], out: Tensor, rows: Rows | None) -> None:
    """Write symbols, or their product with their step as float32, rounded to the type of ``out``."""
    found = torch.from_numpy(symbols)
    if rows is not None and len(symbols):
        found = found.reshape(-1, rows.length) * rows.steps.cpu().reshape(-1, 1)
    with torch.no_grad():
        out.copy_(found.reshape(out.shape))


def store_part(symbols: NDArray[np.int32], out: Tensor, rows: Rows, at: int) -> None:
    """Write a stretch of a tensor's weights, on this thread alone.

    Args:
        symbols: int32 [n], of which the first is number ``at`` of its tensor.
        out: contiguous floating-point weights on the CPU, [n]: ``float32(symbol) * step``, rounded to their type.
        rows: the steps of the whole tensor, on the CPU.
    """
    if not symbols.size:
        return
    if out.dtype in _COMPILED:
        from rdo_kernels.cpu import quantize_loops

        quantize_loops.dequantize_part(
            symbols, rows.steps.reshape(-1).numpy(), rows.length, at, out.data_ptr(), _COMPILED.index(out.dtype)
        )
        return
    places = torch.arange(at, at + symbols.size) // rows.length
    out.copy_(torch.from_numpy(symbols) * rows.steps.reshape(-1)[places])
