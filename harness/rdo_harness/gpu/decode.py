"""Times decoding into bfloat16 weights, of streams that are one segment many times over: quick to set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdo_harness.kernel_checks.streams import exp_golomb_stream, rans_stream, symbols_of
from rdo_kernels.decode import decode_exp_golomb, decode_rans
from rdo_kernels.streams import Rows

SEGMENT = 1 << 18
SCALE = 0.514
"""Of the symbols: 2.5 bits of entropy with :func:`symbols_of`'s shape."""
KEPT = 28
"""Symbols in the table; about one in 7,500 is escaped."""

Timer = Callable[[Sequence[Callable[[], object]], torch.device, int], list[float]]
"""As :func:`rdo_harness.gpu.timing.median_milliseconds`: medians of alternating runs of some arms."""


@dataclass(frozen=True)
class DecodeTiming:
    """One decoder over one long stream.

    Attributes:
        milliseconds, copy_milliseconds: medians, of decoding and of copying as many bfloat16 weights.
        bits: of the payload for each symbol.
        share: of the copy bandwidth measured, if only the payload's and the weights' bytes moved.
    """

    operation: str
    symbols: int
    segments: int
    bits: float
    milliseconds: float
    copy_milliseconds: float
    share: float

    @property
    def symbols_per_second(self) -> float:
        return self.symbols / (self.milliseconds / 1e3)

    @property
    def output_bytes_per_second(self) -> float:
        return 2 * self.symbols_per_second


def repeated(stream: Any, times: int) -> Any:
    """The stream whose every segment is the one of this."""
    length = len(stream.payload)
    changed = {"payload": stream.payload.repeat(times), "offsets": length * np.arange(times + 1, dtype=np.int64)}
    if getattr(stream, "escaped", None) is not None:
        changed["escaped"] = np.repeat(stream.escaped, times)
    return stream._replace(**changed)


def measure(
    device: torch.device, bandwidth: float, repeats: int, timer: Timer, symbols: int = 1 << 30, segment: int = SEGMENT
) -> list[DecodeTiming]:
    """Time rANS at 2.5 bits a symbol and Exp-Golomb of order 0, into ``symbols`` bfloat16 weights.

    On a GPU also the launch by itself, without the checks, the tables and the transfer of the flags before and after.

    Args:
        bandwidth: bytes a second that a copy reads and writes, measured.
        symbols: rounded down to whole segments of ``segment``, but one at least.
    """
    times = max(symbols // segment, 1)
    drawn = symbols_of(segment, SCALE)
    out = torch.empty(times * segment, dtype=torch.bfloat16, device=device)
    step = torch.tensor(0.0123, device=device)
    timings = []
    for name, stream, decode in (
        ("rANS", rans_stream(drawn, device, segment=segment, kept=KEPT), decode_rans),
        ("Exp-Golomb", exp_golomb_stream(drawn, device, segment=segment), decode_exp_golomb),
    ):
        long = repeated(stream, times)
        arms: dict[str, Callable[[], object]] = {name: partial(decode, [long], [out], [step])}
        if device.type == "cuda":
            arms[f"{name}, the launch"] = _launch(name, long, out, step)
        arms["copy"] = partial(out.copy_, torch.zeros_like(out))
        *taken, copy = timer(list(arms.values()), device, repeats)
        out.fill_(float("nan"))
        decode([long], [out], [step])
        expected = (torch.from_numpy(drawn).to(device) * step).to(torch.bfloat16)
        if not bool((out.view(times, segment) == expected).all()):
            raise AssertionError(f"{name} decoded other weights than were encoded")
        moved = len(long.payload) + 2 * out.numel()
        for operation, milliseconds in zip(arms, taken, strict=False):
            timings.append(
                DecodeTiming(
                    operation,
                    out.numel(),
                    times,
                    8 * len(long.payload) / out.numel(),
                    milliseconds,
                    copy,
                    moved / bandwidth / (milliseconds / 1e3),
                )
            )
    return timings


def _launch(name: str, stream: Any, out: Tensor, step: Tensor) -> Callable[[], object]:
    """What decodes a stream on a GPU once its tables are there."""
    from rdo_kernels.gpu import exp_golomb, rans

    module = rans if name == "rANS" else exp_golomb
    (launch,) = module.launches([stream], [out], [Rows(step, out.numel())])
    return launch.run
