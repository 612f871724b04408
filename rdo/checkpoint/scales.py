"""Steps of rows or columns as the head of a stream holds them: docs/format.md, "Entries"."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rdo.channels import FINEST, ChannelSteps, steps_of
from rdo.checkpoint.container import Bytes
from rdo.errors import CoderError


def packed(told: ChannelSteps) -> Bytes:
    """The base, then two exponents to a byte, the first in the low half; an odd one out has 0 above it."""
    halves = (told.exponents.numpy() - FINEST).astype(np.uint8)
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return np.concatenate([np.array([told.base], "<f4").view(np.uint8), halves[::2] | halves[1::2] << 4])


def unpacked(data: Bytes, count: int) -> NDArray[np.float32]:
    """The steps, float32 [count], out of what :func:`packed` gave; they may be no positive numbers.

    Raises:
        CoderError: the half byte that is left over is not 0.
    """
    pairs = data[4:]
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)
    if halves[count:].any():
        raise CoderError("the half byte after the last step is not 0")
    exponents = torch.from_numpy(halves[:count].view(np.int8)) + FINEST
    steps: NDArray[np.float32] = steps_of(float(data[:4].view("<f4")[0]), exponents).numpy()
    return steps
