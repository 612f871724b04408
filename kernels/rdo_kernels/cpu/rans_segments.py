"""Segmented rANS on a CPU, segment by segment: the plain form of :mod:`rdo_kernels.gpu.rans`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdo_kernels.cpu import rans
from rdo_kernels.cpu.weights import store
from rdo_kernels.streams import MAX_SYMBOL, RansStream, Rows

_ESCAPE = np.iinfo(np.int32).min


def decode(streams: Sequence[RansStream], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> list[Tensor]:
    """Decode every stream into its output; for each the flags of its segments (int32, 1: nothing was wrong)."""
    flags = []
    for stream, out, rows in zip(streams, outs, steps, strict=True):
        symbols, sound = _symbols(stream, out.numel())
        store(symbols, out, rows)
        flags.append(torch.from_numpy(sound))
    return flags


def _symbols(stream: RansStream, count: int) -> tuple[np.ndarray, np.ndarray]:
    payload = stream.payload.cpu().numpy()
    entries = np.append(stream.values, np.int32(_ESCAPE)) if stream.escape_width else stream.values
    frequencies = stream.frequencies
    starts = np.cumsum(frequencies) - frequencies
    slot_values = np.repeat(entries.astype(np.int32), frequencies)
    offsets = np.arange(1 << stream.precision) - np.repeat(starts, frequencies)
    slot_steps = ((np.repeat(frequencies, frequencies) - 1) << 16 | offsets).astype(np.uint32)
    symbols = np.empty(count, np.int32)
    counts, escape_words = stream.escapes(), stream.escape_words()
    sound = np.zeros(len(escape_words), np.int32)
    for number, (begin, end) in enumerate(zip(stream.offsets[:-1], stream.offsets[1:], strict=True)):
        own = symbols[number * stream.segment : (number + 1) * stream.segment]
        ints = payload[begin:end].copy().view("<u4").astype(np.uint32)
        states, rest = ints[: stream.lanes].copy(), ints[stream.lanes :]
        escapes, words = rest[: escape_words[number]], rest[escape_words[number] :].view("<u2").astype(np.uint16)
        used = rans.decode(words, states, slot_values, slot_steps, stream.precision, own)
        right = used >= 0 and words.size - used < 2 and not words[used:].any() and bool((states == rans.LOW).all())
        if stream.escape_width:
            right = _fill(own, escapes, int(counts[number]), stream) and right
        sound[number] = right
    return symbols, sound


def _fill(symbols: np.ndarray, words: np.ndarray, escaped: int, stream: RansStream) -> bool:
    """Put escaped symbols into their places; whether there are as many, within range and the padding zero."""
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(np.int64)
    used = escaped * stream.escape_width
    numbers = bits[:used].reshape(escaped, stream.escape_width) @ (1 << np.arange(stream.escape_width, dtype=np.int64))
    found = numbers + stream.escape_low
    holes = np.flatnonzero(symbols == _ESCAPE)
    several = min(len(holes), escaped)
    symbols[holes] = 0
    symbols[holes[:several]] = found[:several].astype(np.int32)
    return len(holes) == escaped and not bits[used:].any() and bool((np.abs(found) <= MAX_SYMBOL).all())
