"""Segmented streams for checks and timings, written from docs/coders.md alone: plain NumPy, any table, no search."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rdo_kernels.streams import ExpGolombStream, RansStream

Symbols = NDArray[np.int64]


def symbols_of(count: int, scale: float, seed: int = 0, shape: float = 0.7) -> Symbols:
    """Rounded draws of a generalized Gaussian."""
    generator = np.random.default_rng([seed, count])
    magnitudes = generator.gamma(1 / shape, size=count) ** (1 / shape)
    return np.rint(scale * magnitudes * generator.choice([-1, 1], count)).astype(np.int64)


def rans_stream(
    symbols: Symbols,
    device: torch.device,
    *,
    segment: int = 4096,
    lanes: int = 32,
    precision: int = 12,
    kept: int | None = None,
) -> RansStream:
    """Encode with the ``kept`` most frequent symbols in the table (None: all) and the others escaped."""
    values, indices, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    inside = np.zeros(len(values), np.bool_)
    inside[np.argsort(-counts, kind="stable")[:kept]] = True
    low, width = 0, 0
    weights = counts[inside]
    if not inside.all():
        outside = values[~inside]
        low = int(outside[0])
        width = max(int(outside[-1] - low).bit_length(), 1)
        weights = np.append(weights, counts[~inside].sum())
    if len(weights) < 2:  # what is left of a table is for symbols that do not occur
        fillers = np.arange(1, 3 - len(weights)) + (int(values.max()) if len(values) else 0)
        values, inside = np.append(values, fillers), np.append(inside, [True] * len(fillers))
        weights = np.append(weights, [1] * len(fillers))
    places = np.cumsum(inside) - 1
    places[~inside] = inside.sum()
    frequencies = _frequencies(weights, precision)
    parts, escaped = [], []
    for start in range(0, len(symbols), segment):
        own = indices[start : start + segment]
        escapes = symbols[start : start + segment][~inside[own]]
        states, words = _rans(places[own], frequencies, precision, lanes)
        tail = words.tobytes() + bytes(2 * (len(words) % 2))
        parts.append(states.tobytes() + _little_endian_bits(escapes - low, width) + tail)
        escaped.append(len(escapes))
    return RansStream(
        _payload(parts, device),
        _offsets(parts),
        segment,
        lanes,
        precision,
        values[inside].astype(np.int32),
        frequencies,
        width,
        low,
        np.array(escaped, np.int64) if width else None,
    )


def exp_golomb_stream(
    symbols: Symbols,
    device: torch.device,
    *,
    segment: int = 4096,
    lanes: int = 32,
    k: int = 0,
    ranked: bool = True,
) -> ExpGolombStream:
    """Encode ranks in the order of falling frequency, or symbols after zig-zag."""
    values, indices, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values))
    numbers = ranks[indices] if ranked else np.where(symbols < 0, -2 * symbols - 1, 2 * symbols)
    parts = []
    for start in range(0, len(numbers), segment):
        own = numbers[start : start + segment]
        streams = [_exp_golomb(own[lane::lanes], k) for lane in range(lanes)]
        lengths = np.array([length for length, _ in streams], "<u4")
        parts.append(lengths.tobytes() + b"".join(words for _, words in streams))
    table = values[order].astype(np.int32) if ranked else None
    return ExpGolombStream(_payload(parts, device), _offsets(parts), segment, lanes, k, table)


def _frequencies(counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    frequencies = np.maximum(1, (counts << precision) // counts.sum())
    while frequencies.sum() > 1 << precision:
        frequencies[frequencies.argmax()] -= 1
    frequencies[frequencies.argmax()] += (1 << precision) - frequencies.sum()
    return frequencies


def _rans(
    indices: NDArray[np.int64], frequencies: NDArray[np.int64], precision: int, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """States and words of a segment, a round of lanes at a time from the last to the first."""
    starts = np.cumsum(frequencies) - frequencies
    states = np.full(lanes, 1 << 16, np.int64)
    words: list[NDArray[np.int64]] = []
    for start in range((len(indices) - 1) // lanes * lanes, -1, -lanes):
        own = indices[start : start + lanes]
        x, frequency = states[: len(own)], frequencies[own]
        full = x >= frequency << (32 - precision)
        words.append(x[full] & 0xFFFF)
        x = np.where(full, x >> 16, x)
        states[: len(own)] = (x // frequency << precision) + x % frequency + starts[own]
    return states.astype("<u4"), np.concatenate(words[::-1]).astype("<u2")


def _little_endian_bits(numbers: Symbols, width: int) -> bytes:
    """Numbers of ``width`` bits, least significant first, in whole words of 4 bytes."""
    bits = (numbers[:, None] >> np.arange(width) & 1).astype(np.uint8).ravel()
    packed = np.packbits(bits, bitorder="little").tobytes()
    return packed + bytes(-len(packed) % 4)


def _exp_golomb(numbers: Symbols, k: int) -> tuple[int, bytes]:
    """Length in bits, and words of 4 bytes, of a lane."""
    codes = numbers + (1 << k)
    lengths = 2 * np.frexp(((numbers >> k) + 1).astype(np.float64))[1].astype(np.int64) - 1 + k
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    places = np.repeat(ends, lengths) - 1 - np.arange(total)
    bits = np.repeat(codes, lengths) >> np.minimum(places, 62) & 1
    packed = np.packbits(bits.astype(np.uint8)).tobytes()
    return total, np.frombuffer(packed + bytes(-len(packed) % 4), ">u4").astype("<u4").tobytes()


def _payload(parts: list[bytes], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy()).to(device)


def _offsets(parts: list[bytes]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)]).astype(np.int64)
