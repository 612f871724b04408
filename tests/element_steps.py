"""The step of each element of a coded tensor, for the second decoder, from docs/format.md alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def element_steps(stream: bytes, begin: int, steps: int, count: int, channels: str | None) -> tuple[Array, int]:
    """Float32 [count] out of a stream in which the steps begin at a place; and where they end."""
    if channels is None:
        end = begin + 4 * steps
        return np.repeat(np.frombuffer(stream[begin:end], "<f4"), count // max(steps, 1)), end
    end = begin + 4 + math.ceil(steps / 2)
    numbers = [half for byte in stream[begin + 4 : end] for half in (byte % 16, byte // 16)]
    assert not any(numbers[steps:])
    powers = np.array([math.sqrt(2.0) ** ((c - 8) % 2) * 2.0 ** ((c - 8) // 2) for c in numbers[:steps]], "<f4")
    own = np.frombuffer(stream[begin : begin + 4], "<f4") * powers
    return np.tile(own, count // steps) if channels == "columns" else np.repeat(own, count // steps), end
