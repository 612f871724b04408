"""Tables of chunks: all tensors of a call in one list of equal pieces of work, shared out over threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 16
"""Weights in a chunk. Sums are taken chunk by chunk, so changing it changes their last bits."""
_MIN_CHUNKS_PER_THREAD = 4
"""Starting a thread costs as much as about 1e5 weights."""

Chunks = NDArray[np.int64]
"""Rows of (address of the weights, address of another tensor or 0, count, tensor)."""


def chunk_table(weights: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Chunks:
    """Cut contiguous float32 tensors, and ``others`` of the same sizes alongside, into chunks."""
    tables = []
    for index, weight in enumerate(weights):
        starts = np.arange(0, weight.numel(), CHUNK, dtype=np.int64)
        table = np.zeros((len(starts), 4), np.int64)
        table[:, 0] = weight.data_ptr() + 4 * starts
        if others is not None:
            table[:, 1] = others[index].data_ptr() + 4 * starts
        table[:, 2] = np.minimum(weight.numel() - starts, CHUNK)
        table[:, 3] = index
        tables.append(table)
    return np.concatenate(tables) if tables else np.zeros((0, 4), np.int64)


def over_threads(work: Callable[[slice], None], rows: int) -> None:
    """Call ``work`` on slices that cover ``range(rows)``, one for each of torch's threads; it must release the lock."""
    threads = max(1, min(torch.get_num_threads(), rows // _MIN_CHUNKS_PER_THREAD))
    bounds = [rows * number // threads for number in range(threads + 1)]
    spans = [slice(*span) for span in pairwise(bounds)]
    started = [threading.Thread(target=work, args=(span,)) for span in spans[1:]]
    for thread in started:
        thread.start()
    work(spans[0])
    for thread in started:
        thread.join()


def sum_by_tensor(values: NDArray[np.float64], chunks: Chunks, tensors: int) -> NDArray[np.float64]:
    """Add up rows of chunks into rows of tensors, in order."""
    total = np.zeros((tensors, *values.shape[1:]), np.float64)
    np.add.at(total, chunks[:, 3], values)
    return total
