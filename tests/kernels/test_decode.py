"""What the decoders refuse of a caller, and the arithmetic of launches. For streams: rdo_harness.kernel_checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdo_harness.kernel_checks.streams import rans_stream, symbols_of
from rdo_kernels.decode import StreamError, decode_exp_golomb, decode_rans

SYMBOLS = symbols_of(60, 2.0)
STREAM = rans_stream(SYMBOLS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("out", "steps", "message"),
    [
        (torch.empty(60, dtype=torch.float64), torch.tensor(1.0), "cannot decode into torch.float64"),
        (torch.empty(120)[::2], torch.tensor(1.0), "not contiguous"),
        (torch.empty(60), None, "weights need steps"),
        (torch.empty(60, dtype=torch.int32), torch.tensor(1.0), "int32 symbols have none"),
        (torch.empty(60), torch.tensor(1.0, dtype=torch.float64), "contiguous float32"),
        (torch.empty(60), torch.ones(2, 2), "contiguous float32"),
        (torch.empty(60), torch.ones(7), "7 steps cannot share 60 symbols"),
        (torch.empty(60), torch.ones(0), "0 steps cannot share 60 symbols"),
    ],
)
def test_tensors_that_do_not_go_together(out: torch.Tensor, steps: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rans([STREAM], [out], [steps])


def test_payloads_are_bytes_and_backends_are_known() -> None:
    out = torch.empty(60, dtype=torch.int32)
    with pytest.raises(ValueError, match="contiguous uint8"):
        decode_rans([STREAM._replace(payload=STREAM.payload.to(torch.int16))], [out], [None])
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: triton, compiled, blocks"):
        decode_rans([STREAM], [out], [None], backend="cuda")


def test_the_error_names_every_damaged_stream_and_its_segments() -> None:
    stream = rans_stream(SYMBOLS, torch.device("cpu"), segment=25)
    bad = stream.payload.clone()
    bad[int(stream.offsets[1])] ^= 1
    bad[int(stream.offsets[2])] ^= 1
    streams = [stream._replace(payload=bad), stream, stream._replace(payload=torch.zeros_like(bad))]
    outs = [torch.empty(60, dtype=torch.int32) for _ in streams]
    with pytest.raises(StreamError, match="2 of stream 0, 3 of stream 2") as raised:
        decode_rans(streams, outs, [None] * 3)
    assert raised.value.streams == (0, 2)
    assert np.array_equal(outs[1].numpy(), SYMBOLS)


def test_outputs_keep_their_sizes_and_autograd_learns_of_the_write() -> None:
    out = torch.nn.Parameter(torch.empty(3, 4, 5))
    before = out._version
    decode_rans([STREAM], [out], [torch.tensor([0.5, 1.0, 2.0])])
    expected = torch.from_numpy(SYMBOLS).float().reshape(3, 20) * torch.tensor([[0.5], [1.0], [2.0]])
    assert torch.equal(out.reshape(3, 20), expected)
    assert out._version > before
    decode_rans([], [], [])
    decode_exp_golomb([], [], [])


def test_a_multiplication_divides_exactly() -> None:
    """By any length of rows, at the multiples of it, where rounding would show, and at the ends of the range."""
    pytest.importorskip("triton", reason="the launches are Triton's")
    from rdo_kernels.gpu.decoding import reciprocal

    generator = np.random.default_rng(0)
    powers = [2**n + d for n in range(31) for d in (-1, 0, 1) if 1 <= 2**n + d <= 2**30]
    for length in {*powers, *generator.integers(1, 2**30, 200).tolist(), *range(1, 200)}:
        magic, shift = reciprocal(length)
        assert magic < 2**32
        largest = (2**31 - 1) // length
        multiples = np.unique(np.append(generator.integers(0, largest + 1, 50), [0, 1, largest])) * length
        numbers = np.unique(np.clip(np.concatenate([multiples - 1, multiples, [2**31 - 1]]), 0, 2**31 - 1))
        found = [((2 * n * magic) >> 32) >> shift for n in numbers.tolist()]
        assert found == (numbers // length).tolist(), length
