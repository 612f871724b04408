"""Tables of chunks: all tensors of a call in one list of equal pieces of work, for threads and for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 16
"""Weights in a chunk. Sums are taken chunk by chunk, so changing it changes their last bits."""

Chunks = NDArray[np.int64]
"""Rows of (count, tensor, address of the weights, addresses of further tensors)."""

COUNT, TENSOR, ADDRESSES = 0, 1, 2
"""Columns of a row; addresses go on from the last."""


def chunk_table(*groups: Sequence[Tensor]) -> Chunks:
    """Cut contiguous tensors into chunks: the weights, and alongside other groups of tensors of the same sizes."""
    weights = groups[0]
    counts = np.array([weight.numel() for weight in weights], np.int64)
    pieces = -(-counts // CHUNK)
    tensor = np.repeat(np.arange(len(weights)), pieces)
    starts = CHUNK * (np.arange(len(tensor)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    table = np.empty((len(tensor), ADDRESSES + len(groups)), np.int64)
    table[:, COUNT] = np.minimum(counts[tensor] - starts, CHUNK)
    table[:, TENSOR] = tensor
    for column, group in enumerate(groups, ADDRESSES):
        addresses = np.array([item.data_ptr() for item in group], np.int64)
        element_sizes = np.array([item.element_size() for item in group], np.int64)
        table[:, column] = addresses[tensor] + element_sizes[tensor] * starts
    return table


STEPS, ROW, OFFSET = 4, 5, 6
"""Columns of :func:`quantization_table` after the addresses of weights and symbols."""


def quantization_table(weights: Sequence[Tensor], symbols: Sequence[Tensor], steps: Sequence[Tensor]) -> Chunks:
    """Chunks of weights and symbols, and where their steps are.

    The further columns are the address of the step of the chunk's first weight, the weights in a row (which share a
    step), and how many of its row lie before the first. Steps are float32, one for a tensor or one for each row.
    """
    chunks = chunk_table(weights, symbols)
    tensor = chunks[:, TENSOR]
    addresses = np.array([weight.data_ptr() for weight in weights], np.int64)
    element_sizes = np.array([weight.element_size() for weight in weights], np.int64)
    starts = (chunks[:, ADDRESSES] - addresses[tensor]) // element_sizes[tensor]
    rows = np.array([w.numel() // max(s.numel(), 1) for w, s in zip(weights, steps, strict=True)], np.int64)[tensor]
    first = np.array([step.data_ptr() for step in steps], np.int64)[tensor] + 4 * (starts // rows)
    return np.column_stack([chunks, first, rows, starts % rows])


def sum_by_tensor(values: NDArray[np.float64], chunks: Chunks, tensors: int) -> NDArray[np.float64]:
    """Add up rows of chunks into rows of tensors, in order."""
    total = np.zeros((tensors, *values.shape[1:]), np.float64)
    np.add.at(total, chunks[:, TENSOR], values)
    return total
