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


def sum_by_tensor(values: NDArray[np.float64], chunks: Chunks, tensors: int) -> NDArray[np.float64]:
    """Add up rows of chunks into rows of tensors, in order."""
    total = np.zeros((tensors, *values.shape[1:]), np.float64)
    np.add.at(total, chunks[:, TENSOR], values)
    return total
