"""Decoded symbols to weights on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.streams import Rows


def store(symbols: NDArray[np.int32], out: Tensor, rows: Rows | None) -> None:
    """Write symbols, or their product with their step as float32, rounded to the type of ``out``."""
    found = torch.from_numpy(symbols)
    if rows is not None and len(symbols):
        found = found.reshape(-1, rows.length) * rows.steps.cpu().reshape(-1, 1)
    with torch.no_grad():
        out.copy_(found.reshape(out.shape))
