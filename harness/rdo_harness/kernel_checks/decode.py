"""Decoded streams against the symbols they were made of, to the bit, and what becomes of damaged ones.

Streams are short where kernels are interpreted, and longer on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdo_harness.kernel_checks.damage import cut_and_filled, flipped, halved, wrapping
from rdo_harness.kernel_checks.samples import check
from rdo_harness.kernel_checks.streams import Symbols, exp_golomb_stream, rans_stream, symbols_of
from rdo_kernels.decode import ExpGolombStream, RansStream, StreamError, decode_exp_golomb, decode_rans
from rdo_kernels.gpu.launch import interpreting
from rdo_kernels.streams import MAX_SYMBOL

Coder = tuple[Callable[..., Any], Callable[..., None]]
Case = tuple[Coder, Symbols, dict[str, Any]]
RANS: Coder = (rans_stream, decode_rans)
EXP_GOLOMB: Coder = (exp_golomb_stream, decode_exp_golomb)
WEIGHTS = (torch.bfloat16, torch.float16, torch.float32)
_MARGIN = 7
"""Elements before and after an output that nothing may write; an odd number, so that outputs are not aligned."""


def _wide(count: int) -> Symbols:
    """Mostly zeros, and symbols as far out as can be."""
    symbols = symbols_of(count, 0.4, seed=1)
    symbols[:: count // 5] = (MAX_SYMBOL, -MAX_SYMBOL, 1 << 20, -(1 << 16) + 1, 3, -77)[: len(symbols[:: count // 5])]
    return symbols


def _cases(device: torch.device) -> list[Case]:
    few: list[Case] = [(RANS, symbols_of(count, 2.0), {}) for count in (0, 1, 31, 32, 33)]
    few += [(EXP_GOLOMB, symbols_of(count, 2.0), {}) for count in (0, 1, 31, 32, 33)]
    large = 200_003 if device.type == "cuda" else 4_133
    return [
        *few,
        (RANS, symbols_of(331, 2.0), {"segment": 97, "precision": 8, "kept": 6}),
        (RANS, symbols_of(331, 1.0), {"segment": 97, "precision": 16}),
        (RANS, symbols_of(23, 1.0), {"segment": 10, "lanes": 1, "kept": 1, "precision": 8}),
        (RANS, symbols_of(67, 1.0), {"segment": 30, "lanes": 4, "kept": 3, "precision": 16}),
        (RANS, symbols_of(397, 3e3), {"precision": 16}),  # more than 256 entries
        (RANS, _wide(211), {"segment": 100, "kept": 2}),
        (RANS, _wide(211), {"segment": 100}),
        (RANS, np.full(70, 5), {}),
        (RANS, symbols_of(large, 0.5), {"kept": 12}),
        (EXP_GOLOMB, symbols_of(331, 2.0), {"segment": 97, "k": 2}),
        (EXP_GOLOMB, symbols_of(23, 2.0), {"segment": 10, "lanes": 1, "ranked": False}),
        (EXP_GOLOMB, symbols_of(67, 2.0), {"segment": 30, "lanes": 4, "k": 15}),
        (EXP_GOLOMB, symbols_of(257, 9e4), {"segment": 128, "ranked": False}),
        (EXP_GOLOMB, _wide(211), {"segment": 100, "ranked": False}),
        (EXP_GOLOMB, _wide(211), {"segment": 100, "ranked": False, "k": 15}),
        (EXP_GOLOMB, symbols_of(large, 0.5), {"segment": 4096 if device.type == "cuda" else 1024}),
    ]


@check
def symbols_come_back_to_the_bit(device: torch.device, backend: str | None) -> None:
    for coder in (RANS, EXP_GOLOMB):
        cases = [(symbols, options) for own, symbols, options in _cases(device) if own is coder]
        streams = [coder[0](symbols, device, **options) for symbols, options in cases]
        _decode_and_compare(coder, streams, [symbols for symbols, _ in cases], torch.int32, [], backend)


@check
def streams_written_by_hand_are_read(device: torch.device, backend: str | None) -> None:
    """The order of bits and states, worked out on paper from docs/coders.md."""
    halves = np.array([128, 128], np.int64)

    def words(*numbers: int) -> Tensor:
        return torch.from_numpy(np.array(numbers, "<u4").view(np.uint8)).to(device)

    # Frequencies of 128 in 256 slots: 65536 becomes 131072 with the first symbol, then 262144 + 128 with the second.
    two = RansStream(words(262_272), np.array([0, 4]), 4096, 1, 8, np.array([5, 9], np.int32), halves)
    _decode_and_compare(RANS, [two], [np.array([9, 5])], torch.int32, [], backend)
    # 65536 -> 131200 (escape) -> 262528 (escape) -> 525056 (symbol 0); 3 and -4 are 7 and 0 above -4, in 3 bits each.
    escapes = RansStream(
        words(525_056, 0b000_111), np.array([0, 8]), 4096, 1, 8, np.zeros(1, np.int32), halves, 3, -4, np.array([2])
    )
    _decode_and_compare(RANS, [escapes], [np.array([0, 3, -4])], torch.int32, [], backend)
    # 0, -1, 1, -2 are 1, 010, 011 and 00100.
    codes = ExpGolombStream(words(12, 0b1010_0110_0100 << 20), np.array([0, 8]), 4096, 1, 0)
    _decode_and_compare(EXP_GOLOMB, [codes], [np.array([0, -1, 1, -2])], torch.int32, [], backend)


@check
def weights_come_back_to_the_bit(device: torch.device, backend: str | None) -> None:
    """Symbols times a step, rounded once to the output's type; denormal weights are not flushed."""
    for coder in (RANS, EXP_GOLOMB):
        cases = [case for case in _cases(device) if case[0] is coder and len(case[1]) < 1000]
        for number, dtype in enumerate(WEIGHTS):
            some = cases[number % 3 :: 3]
            streams = [coder[0](symbols, device, **options) for _, symbols, options in some]
            small = 1e-41 if dtype == torch.float32 else 1e-5
            steps = [torch.tensor(step) for step in (0.0123, small, 3e3, 0.7)] * len(some)
            _decode_and_compare(coder, streams, [case[1] for case in some], dtype, steps[: len(some)], backend)


@check
def every_row_has_its_step(device: torch.device, backend: str | None) -> None:
    """Rows of one symbol and longer than a segment, beginning anywhere in one."""
    shapes = [(40, 1), (3, 11), (7, 37), (2, 131), (1, 45)]
    generator = torch.Generator().manual_seed(0)
    for coder in (RANS, EXP_GOLOMB):
        symbols = [symbols_of(rows * length, 2.0) for rows, length in shapes]
        streams = [coder[0](own, device, segment=64) for own in symbols]
        steps = [torch.rand(rows, generator=generator) for rows, _ in shapes]
        _decode_and_compare(coder, streams, symbols, torch.float32, steps, backend)


@check
def a_payload_may_begin_anywhere(device: torch.device, backend: str | None) -> None:
    for coder in (RANS, EXP_GOLOMB):
        stream = coder[0](symbols_of(77, 2.0), device)
        store = torch.zeros(len(stream.payload) + 1, dtype=torch.uint8, device=device)
        store[1:] = stream.payload
        _decode_and_compare(
            coder, [stream._replace(payload=store[1:])], [symbols_of(77, 2.0)], torch.int32, [], backend
        )


@check
def damaged_rans_streams_are_told(device: torch.device, backend: str | None) -> None:
    symbols = symbols_of(285, 40.0)
    stream = rans_stream(symbols, device, segment=96, kept=60)
    assert stream.escaped is not None
    first = int(stream.offsets[1])
    words = first - 2 * int(stream.words()[0])
    more, fewer = stream.escaped.copy(), stream.escaped.copy()
    more[0] += 1
    fewer[0] -= 1
    damaged = [
        *(flipped(stream, at) for at in (0, 3, 4 * stream.lanes - 1, words, first, first + 77)),
        *cut_and_filled(stream),
        stream._replace(escaped=more),
        stream._replace(escaped=fewer),
        stream._replace(escape_low=MAX_SYMBOL),
        stream._replace(precision=stream.precision - 1, frequencies=halved(stream.frequencies)),
    ]
    _all_refused(RANS, stream, damaged, symbols, backend)
    malformed = [
        stream._replace(precision=17),
        stream._replace(lanes=3),
        stream._replace(segment=0),
        stream._replace(frequencies=stream.frequencies + 1),
        stream._replace(frequencies=wrapping(stream.frequencies)),
        stream._replace(values=stream.values + MAX_SYMBOL),
        stream._replace(escape_width=33),
        stream._replace(escaped=stream.escaped - 96),
        stream._replace(escaped=stream.escaped + 96),
        stream._replace(escaped=stream.escaped[:1]),
        stream._replace(offsets=stream.offsets + 4),
        stream._replace(offsets=stream.offsets[[0, 2, 1, 3]]),
        stream._replace(offsets=np.array([0, 8, 16, len(stream.payload)])),
    ]
    _all_malformed(RANS, malformed, len(symbols), backend)


@check
def damaged_exp_golomb_streams_are_told(device: torch.device, backend: str | None) -> None:
    symbols = symbols_of(118, 1.0)
    stream = exp_golomb_stream(symbols, device, segment=40)
    assert stream.values is not None
    damaged = [
        *(flipped(stream, at) for at in (0, 3, 4 * stream.lanes - 1)),
        flipped(stream, len(stream.payload) - 4),  # the end of a lane of few symbols, so padding
        *cut_and_filled(stream),
        stream._replace(values=stream.values[:2]),
        exp_golomb_stream(np.append(symbols[:117], MAX_SYMBOL + 1), device, segment=40, ranked=False),
    ]
    _all_refused(EXP_GOLOMB, stream, damaged, symbols, backend)
    malformed = [
        stream._replace(values=stream.values[:0]),
        stream._replace(values=stream.values - MAX_SYMBOL),
        stream._replace(k=16),
        stream._replace(segment=118),
        stream._replace(offsets=np.array([0, 8, 16, len(stream.payload)])),
    ]
    _all_malformed(EXP_GOLOMB, malformed, len(symbols), backend)


def _all_refused(coder: Coder, sound: Any, damaged: Sequence[Any], symbols: Symbols, backend: str | None) -> None:
    """Damaged streams are named, no margin is written, and a sound stream among them is decoded."""
    stores = [_poisoned(len(symbols), torch.int32, sound.payload.device) for _ in range(len(damaged) + 1)]
    outs = [store[_MARGIN : _MARGIN + len(symbols)] for store in stores]
    refused = _refused(coder, [sound, *damaged], outs, backend)
    assert refused == tuple(range(1, len(outs))), f"only {refused} of {len(damaged)} were noticed"
    for store in stores:
        _margins_are_whole(store, len(symbols))
    assert np.array_equal(outs[0].cpu().numpy(), symbols), "a sound stream suffered"
    for count in (len(symbols) - 1, len(symbols) + 1):
        out = torch.empty(count, dtype=torch.int32, device=sound.payload.device)
        assert _refused(coder, [sound], [out], backend), f"{count} symbols were read from a stream of {len(symbols)}"


def _all_malformed(coder: Coder, streams: Sequence[Any], count: int, backend: str | None) -> None:
    """Streams whose tables cannot be right are refused before anything is decoded."""
    for number, stream in enumerate(streams):
        out = _poisoned(count, torch.int32, stream.payload.device)[:count]
        before = out.clone()
        assert _refused(coder, [stream], [out], backend) == (0,), f"table {number} was accepted"
        assert torch.equal(out, before), f"table {number} was refused too late"


def _refused(coder: Coder, streams: Sequence[Any], outs: Sequence[Tensor], backend: str | None) -> tuple[int, ...]:
    try:
        coder[1](streams, outs, [None] * len(outs), backend=backend)
    except StreamError as error:
        return error.streams
    return ()


def _decode_and_compare(
    coder: Coder,
    streams: Sequence[Any],
    symbols: Sequence[Symbols],
    dtype: torch.dtype,
    steps: Sequence[Tensor],
    backend: str | None,
) -> None:
    stores = [_poisoned(len(own), dtype, stream.payload.device) for stream, own in zip(streams, symbols, strict=True)]
    outs = [store[_MARGIN : _MARGIN + len(own)] for store, own in zip(stores, symbols, strict=True)]
    placed = [step.to(out.device) for step, out in zip(steps, outs, strict=True)] if steps else [None] * len(outs)
    coder[1](streams, outs, placed, backend=backend)
    for number, (store, own) in enumerate(zip(stores, symbols, strict=True)):
        expected = torch.from_numpy(own.astype(np.int32))
        if steps:
            step = steps[number]
            rows = expected.reshape(step.numel(), -1) if len(own) else expected
            expected = _rounded((rows * step.reshape(-1, 1)).reshape(-1), dtype, backend)
        found = store[_MARGIN : _MARGIN + len(own)].cpu()
        assert torch.equal(_bits(found), _bits(expected)), f"stream {number}: {int((found != expected).sum())} differ"
        _margins_are_whole(store, len(own))


def _rounded(values: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    """As a GPU rounds; Triton's interpreter only cuts float32 to bfloat16."""
    if dtype == torch.bfloat16 and backend == "triton" and interpreting():
        return (values.view(torch.int32) & -65_536).view(torch.float32).to(dtype)
    return values.to(dtype)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int16 if values.element_size() == 2 else torch.int32)


def _poisoned(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    poison = float("nan") if dtype.is_floating_point else -123_456_789
    return torch.full((count + 2 * _MARGIN,), poison, dtype=dtype, device=device)


def _margins_are_whole(store: Tensor, count: int) -> None:
    margins = _bits(torch.cat([store[:_MARGIN], store[_MARGIN + count :]]))
    assert torch.equal(margins, _bits(_poisoned(0, store.dtype, store.device))), "written beyond the output"
