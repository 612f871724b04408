"""Segments of the coder "context": the arrays around the loops of :mod:`rdo_kernels.cpu.context_loops`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdo_kernels.cpu import context_loops
from rdo_kernels.cpu.context_loops import TOO_LONG


def encode(symbols: NDArray[np.int32], row_length: int, column: int, shift: int) -> NDArray[np.uint8]:
    """Encode int32 symbols within +-2^30, [n]; the first is in ``column`` < ``row_length``."""
    room = symbols.size + 64
    while True:
        data = np.empty(room, np.uint8)
        used = context_loops.code(False, symbols, row_length, column, shift, data)
        if used != TOO_LONG:
            return data[:used].copy()
        room *= 4


def decode(data: NDArray[np.uint8], row_length: int, column: int, shift: int, out: NDArray[np.int32]) -> bool:
    """Decode a segment into ``out``; trusts nothing. Whether the bytes are what an encoder gives for these symbols."""
    if data.size and not data[-1]:
        return False
    used = context_loops.code(True, out, row_length, column, shift, data)
    return bool(0 <= data.size <= used)
