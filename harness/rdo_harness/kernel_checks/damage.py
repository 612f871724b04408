"""What can happen to a stream: bits that change, segments cut short, noise, and tables that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def flipped(stream: Any, at: int) -> Any:
    """With one bit of a byte of the payload changed."""
    payload = stream.payload.clone()
    payload[at] ^= 1
    return stream._replace(payload=payload)


def cut_and_filled(stream: Any) -> list[Any]:
    """Shorter and longer, at either end of a segment, and full of zeros, ones and noise."""
    payload, less, more = stream.payload, stream.offsets.copy(), stream.offsets.copy()
    less[-1] -= 4
    more[-1] += 4
    early, late = stream.offsets.copy(), stream.offsets.copy()
    early[1] -= 4
    late[1] += 4
    zeros = torch.zeros(4, dtype=torch.uint8, device=payload.device)
    noise = torch.randint(256, payload.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [
        stream._replace(payload=payload[:-4].clone(), offsets=less),
        stream._replace(payload=torch.cat([payload, zeros]), offsets=more),
        stream._replace(offsets=early),
        stream._replace(offsets=late),
        stream._replace(payload=torch.zeros_like(payload)),
        stream._replace(payload=torch.full_like(payload, 255)),
        stream._replace(payload=noise.to(payload.device)),
    ]


def halved(frequencies: Any) -> Any:
    """A table of one bit less that is another law."""
    halves = np.maximum(frequencies // 2, 1)
    halves[halves.argmax()] += frequencies.sum() // 2 - halves.sum()
    return halves


def wrapping(frequencies: Any) -> Any:
    """A table whose sum is right in 64 bits only because it overflows them."""
    large = frequencies.copy()
    large[:4] += 1 << 62
    return large
