"""Tables of chunks: all tensors of a call in one list of equal pieces of work, for threads and for a GPU.

Which pieces there are depends on sizes alone; where they lie is in a table of addresses, one row for each tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 16
"""Weights in a chunk. Sums are taken chunk by chunk, so changing it changes their last bits."""

Chunks = NDArray[np.int64]
"""Rows of (count, tensor, first weight within it)."""

COUNT, TENSOR, FIRST = 0, 1, 2
"""Columns of a row."""


@lru_cache(maxsize=64)
def chunk_table(counts: tuple[int, ...]) -> Chunks:
    """Cut tensors of these numbers of weights into chunks; the table is shared and must not be changed."""
    sizes = np.array(counts, np.int64)
    pieces = -(-sizes // CHUNK)
    tensor = np.repeat(np.arange(len(sizes)), pieces)
    table = np.empty((len(tensor), 3), np.int64)
    table[:, TENSOR] = tensor
    table[:, FIRST] = CHUNK * (np.arange(len(tensor)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    table[:, COUNT] = np.minimum(sizes[tensor] - table[:, FIRST], CHUNK)
    table.flags.writeable = False
    return table


def chunks_of(weights: Sequence[Tensor]) -> Chunks:
    """The table of these tensors."""
    return chunk_table(tuple([weight.numel() for weight in weights]))


def address_table(groups: Sequence[Sequence[Tensor]]) -> NDArray[np.int64]:
    """Where tensors begin: the weights, and alongside other groups of tensors of the same sizes; int64 [T, groups]."""
    return np.array([[item.data_ptr() for item in group] for group in groups], np.int64).T.copy()


ADDRESSES, STEPS, ROW, OFFSET = 2, 4, 5, 6
"""Columns of :func:`quantization_table`; the address of the symbols follows that of the weights."""


def quantization_table(weights: Sequence[Tensor], symbols: Sequence[Tensor], steps: Sequence[Tensor]) -> Chunks:
    """Chunks of weights and symbols, and where their steps are: int64 [rows, 7].

    Columns: count, tensor, addresses of the chunk's weights and symbols, address of the step of its first weight, the
    weights in a row (which share a step), and how many of its row lie before the first. Steps are float32, one for a
    tensor or one for each row.
    """
    chunks, begins = chunks_of(weights), address_table([weights, symbols, steps]).reshape(-1, 3)
    count, tensor, first = chunks.T
    widths = [np.array([item.element_size() for item in group], np.int64) for group in (weights, symbols)]
    sizes, pieces = (np.array([item.numel() for item in group], np.int64) for group in (weights, steps))
    rows = (sizes // np.maximum(pieces, 1))[tensor]
    table = np.empty((len(chunks), 7), np.int64)
    table[:, COUNT], table[:, TENSOR], table[:, ROW], table[:, OFFSET] = count, tensor, rows, first % rows
    for group, width in enumerate(widths):
        table[:, ADDRESSES + group] = begins[tensor, group] + width[tensor] * first
    table[:, STEPS] = begins[tensor, 2] + 4 * (first // rows)
    return table


def sum_by_tensor(values: NDArray[np.float64], chunks: Chunks, tensors: int) -> NDArray[np.float64]:
    """Add up rows of chunks into rows of tensors, in order."""
    total = np.zeros((tensors, *values.shape[1:]), np.float64)
    np.add.at(total, chunks[:, TENSOR], values)
    return total
