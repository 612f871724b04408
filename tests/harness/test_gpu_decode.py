"""The timings of decoding, with a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from rdo_harness.gpu import decode
from rdo_harness.gpu.decode import measure, repeated
from rdo_harness.kernel_checks.streams import rans_stream, symbols_of
from rdo_kernels.decode import decode_rans

CPU = torch.device("cpu")


def clock(arms: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """The decoder takes 2 ms, the copy 1 ms."""
    for arm in arms:
        arm()
    return [2.0, 1.0]


def test_speeds_follow_from_times_and_sizes() -> None:
    rans, exp_golomb = measure(CPU, bandwidth=1e9, repeats=3, timer=clock, symbols=10_000, segment=4096)
    for timing in (rans, exp_golomb):
        assert (timing.symbols, timing.segments) == (8192, 2)
        assert timing.symbols_per_second == pytest.approx(8192 / 2e-3)
        assert timing.output_bytes_per_second == pytest.approx(2 * 8192 / 2e-3)
        assert timing.share == pytest.approx((2 * 8192 + timing.bits / 8 * 8192) / 1e9 / 2e-3)
        assert (timing.milliseconds, timing.copy_milliseconds) == (2.0, 1.0)
    assert 2.4 < rans.bits < 2.9  # a segment so short pays for its states
    assert exp_golomb.bits > rans.bits


def test_wrong_weights_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(streams: object, outs: Sequence[torch.Tensor], steps: object) -> None:
        outs[0][1:] = 0.0

    monkeypatch.setattr(decode, "decode_rans", lazy)
    with pytest.raises(AssertionError, match="rANS decoded other weights"):
        measure(CPU, bandwidth=1e9, repeats=1, timer=clock, symbols=4096, segment=4096)


def test_a_repeated_stream_is_its_symbols_again() -> None:
    symbols = torch.from_numpy(symbols_of(300, 2.0)).int()
    out = torch.empty(900, dtype=torch.int32)
    decode_rans([repeated(rans_stream(symbols.numpy(), CPU, segment=300, kept=3), 3)], [out], [None])
    assert torch.equal(out, symbols.repeat(3))
