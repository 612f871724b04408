"""Segmented Exp-Golomb codes on a CPU, lane by lane: the plain form of :mod:`rdo_kernels.gpu.exp_golomb`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.cpu import prefix
from rdo_kernels.cpu.weights import store
from rdo_kernels.streams import MAX_SYMBOL, ExpGolombStream, Rows


def decode(streams: Sequence[ExpGolombStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Tensor]:
    """Decode every stream into its output; for each the flags of its segments (int32, 1: nothing was wrong)."""
    flags = []
    for stream, out, rows in zip(streams, outs, steps, strict=True):
        payload = stream.payload.cpu().numpy()
        numbers = np.zeros(out.numel(), np.uint32)
        sound = np.zeros(len(stream.offsets) - 1, np.int32)
        for segment, (begin, end) in enumerate(zip(stream.offsets[:-1], stream.offsets[1:], strict=True)):
            own = numbers[segment * stream.segment : (segment + 1) * stream.segment]
            sound[segment] = _segment(payload[begin:end].copy().view("<u4"), stream, own)
        store(_symbols(numbers, stream), out, rows)
        flags.append(torch.from_numpy(sound))
    return flags


def _segment(words: NDArray[np.uint32], stream: ExpGolombStream, out: NDArray[np.uint32]) -> bool:
    """Decode a segment into numbers; whether nothing was wrong."""
    lengths, data = words[: stream.lanes].astype(np.int64), words[stream.lanes :]
    ends = np.cumsum((lengths + 31) // 32)
    if ends[-1] != data.size:
        return False
    right = True
    for lane, (end, bits) in enumerate(zip(ends, lengths, strict=True)):
        own = data[end - (bits + 31) // 32 : end].astype(">u4").view(np.uint8)
        numbers = np.zeros(len(out[lane :: stream.lanes]), np.uint32)
        used = prefix.decode_exp_golomb(prefix.padded(own), bits, stream.k, numbers)
        right = right and used == bits and not np.unpackbits(own)[bits:].any()
        out[lane :: stream.lanes] = numbers
    largest = 2 * MAX_SYMBOL if stream.values is None else len(stream.values) - 1
    return right and (out.size == 0 or int(out.max()) <= largest)


def _symbols(numbers: NDArray[np.uint32], stream: ExpGolombStream) -> NDArray[np.int32]:
    if stream.values is not None:
        values = stream.values if len(stream.values) else np.zeros(1, np.int32)
        return values[np.minimum(numbers, len(values) - 1)]
    wide = numbers.astype(np.int64)
    return np.where(wide & 1, -((wide + 1) >> 1), wide >> 1).astype(np.int32)
