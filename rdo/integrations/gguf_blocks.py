"""Integer symbols in GGUF's blocks of 32 weights with one float16 scale each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Weights in a block, neighbours in a row."""
WIDTHS = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
"""Types whose weight is the scale times a two's complement number of so many bits."""


def pack(symbols: NDArray[Any], steps: NDArray[np.float16], bits: int) -> NDArray[np.uint8]:
    """Store symbols as llama.cpp's type for this width, docs/serving.md.

    Args:
        symbols: integers [rows, columns] that the width holds; columns are a multiple of 32.
        steps: of the rows, float16 [rows].
        bits: 4, 5 or 8.

    Returns:
        uint8 [rows, bytes]. A block is its scale; for 5 bits, the highest bits, of the first weight lowest; and the
        symbols: a byte each, or plus half the levels, the low four bits of weight i and of weight i + 16 in one byte.
    """
    rows, columns = symbols.shape
    blocks = symbols.reshape(-1, BLOCK)
    scales = np.repeat(steps.astype("<f2"), columns // BLOCK).view(np.uint8).reshape(-1, 2)
    if bits == 8:
        parts = [scales, blocks.astype(np.int8).view(np.uint8)]
    else:
        codes = (blocks + (1 << (bits - 1))).astype(np.uint8)
        low = codes & 15
        high = [np.packbits(codes >> 4, axis=1, bitorder="little")] if bits == 5 else []
        parts = [scales, *high, (low[:, : BLOCK // 2] | low[:, BLOCK // 2 :] << 4).astype(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)
