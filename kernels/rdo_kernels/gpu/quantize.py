"""Quantisation of contiguous tensors on a GPU. The functions are those of :mod:`rdo_kernels.quantize`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from rdo_kernels.chunks import ADDRESSES, CHUNK, quantization_table
from rdo_kernels.gpu import quantize_kernels as kernels
from rdo_kernels.gpu.kernels import TYPES
from rdo_kernels.gpu.launch import block, interpreting
from rdo_kernels.types import BOUNDS, LIMITS

_SYMBOLS = {torch.int8: tl.int8, torch.int16: tl.int16, torch.int32: tl.int32}
_GROUP = 16
"""Neighbours that share the load of a step and its reciprocal, where rows are multiples of it."""
_THREE_PROGRAMS = {"maxnreg": 80} if torch.version.hip is None else {}
"""Share a multiprocessor of 65,536 registers: one computes while others wait for memory. Rows need more registers."""


def quantize(
    weights: Sequence[Tensor],
    symbols: Sequence[Tensor],
    steps: Sequence[Tensor],
    dead_zone: float,
    counts: Tensor | None,
) -> Tensor:
    """Fill ``symbols``, add to ``counts`` and return how many weights of each tensor have no symbol."""
    device, dtype = weights[0].device, symbols[0].dtype
    lost = torch.zeros(len(weights), dtype=torch.int64, device=device)
    zone = torch.tensor([0.5 + dead_zone], dtype=torch.float32).to(device)
    bound, limit = BOUNDS[dtype], LIMITS[dtype]
    for rows, group in _launches(weights, steps):
        chunks, aligned = _table([weights[i] for i in rows], [symbols[i] for i in rows], [steps[i] for i in rows])
        programs = len(chunks) * -(-CHUNK // kernels.SHARE.value)
        own = torch.zeros(programs if counts is not None else 0, 2 * bound + 2, dtype=torch.int32, device=device)
        found = torch.zeros(len(rows), 2 * bound + 2, dtype=torch.int64, device=device)
        missing = torch.zeros(len(rows), dtype=torch.int64, device=device)
        if len(chunks):
            kernels.quantize[(programs,)](
                chunks,
                zone,
                own,
                found,
                missing,
                TYPES[weights[rows[0]].dtype],
                _SYMBOLS[dtype],
                limit,
                bound,
                counts is not None,
                group,
                not interpreting(),
                aligned,
                min(block(2048), kernels.SHARE.value),
                num_warps=8,
                **(_THREE_PROGRAMS if group == 0 else {}),
            )
        lost[rows] = missing
        if counts is not None:
            counts[rows] += found
    return lost


def dequantize(symbols: Sequence[Tensor], steps: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Fill ``weights``."""
    for rows, group in _launches(weights, steps):
        chunks, aligned = _table([weights[i] for i in rows], [symbols[i] for i in rows], [steps[i] for i in rows])
        if len(chunks):
            kernels.dequantize[(len(chunks),)](
                chunks,
                TYPES[weights[rows[0]].dtype],
                _SYMBOLS[symbols[0].dtype],
                group,
                aligned,
                block(1024),  # four weights a thread: neighbours write whole lines
                num_warps=8,
            )


def _launches(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> list[tuple[list[int], int]]:
    """Which tensors share a launch, and its number of neighbours with one step; 0 for a step per tensor."""
    launches: dict[tuple[torch.dtype, int], list[int]] = {}
    for index, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        group = 0
        if step.numel() > 1:
            row = weight.numel() // step.numel()
            assert row < 1 << 30
            group = _GROUP if row % _GROUP == 0 else 1
        launches.setdefault((weight.dtype, group), []).append(index)
    return [(rows, group) for (_, group), rows in launches.items()]


def _table(weights: list[Tensor], symbols: list[Tensor], steps: list[Tensor]) -> tuple[Tensor, bool]:
    """The chunks on the device, and whether all loads and stores can be of 16 bytes."""
    chunks = torch.from_numpy(quantization_table(weights, symbols, steps))
    aligned = not bool((chunks[:, ADDRESSES : ADDRESSES + 2] % 16).any())
    return chunks.to(weights[0].device, non_blocking=True), aligned
