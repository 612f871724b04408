"""What a GPU decodes is what the CPU decodes: run with TRITON_INTERPRET=1, the CPU playing the GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import rdo_kernels.decode
from rdo.channels import Axis, ChannelSteps, channels
from rdo.checkpoint import load_compressed, save_compressed
from rdo.coders.segments import Layout
from rdo.errors import CorruptCheckpointError
from rdo.integrations.stored import stored_tensors
from rdo.quantizers import AllocatedQuantizer, RelativeQuantizer
from tests.sealing import with_stream

TOLD = "the same bytes"


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 64, generator=generator) ** 3  # two segments of 2^12, and escapes
    return {
        "w": weight,
        "tied": weight,
        "bf16": torch.randn(3, 70, generator=generator).bfloat16(),
        "f16": torch.randn(5, 41, generator=generator).half(),
        "f64": torch.randn(2, 3, generator=generator).double(),
        "constant": torch.full((4, 64), 0.25),
        "raw": torch.randn(9, generator=generator),
        "ids": torch.arange(3),
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        if tensor.dtype == torch.bfloat16:  # which Triton's interpreter truncates, where a GPU rounds
            assert int((found[name].view(torch.int16) - tensor.view(torch.int16)).abs().max()) <= 1, name
        else:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def decoded_by_kernels(function: Callable[[], Any]) -> tuple[Any, int]:
    """A result, and how many streams went to the kernels."""
    streams = 0

    def counting(own: Callable[..., None]) -> Callable[..., None]:
        def counted(given: Any, *arguments: Any, **options: Any) -> None:
            nonlocal streams
            streams += len(given)
            own(given, *arguments, **options)

        return counted

    always = patch("rdo.checkpoint.on_device.decodes_on", lambda device: True)
    also = patch("rdo.integrations.stored.decodes_on", lambda device: True)
    rans = patch.object(rdo_kernels.decode, "decode_rans", counting(rdo_kernels.decode.decode_rans))
    exp_golomb = patch.object(rdo_kernels.decode, "decode_exp_golomb", counting(rdo_kernels.decode.decode_exp_golomb))
    with always, also, rans, exp_golomb:
        return function(), streams


def one_by_one(path: Path) -> dict[str, Tensor]:
    return {name: tensor.on("cpu", None) for name, tensor in stored_tensors(path).items()}


def check_channels(path: Path) -> None:
    """Steps of rows or columns; weights of columns are rounded to their type after a kernel gave the symbols."""
    own = {name: tensor for name, tensor in state().items() if name in ("w", "f16", "bf16", "f64")}
    found: dict[str, ChannelSteps] = {}
    for name, tensor in own.items():
        axis: Axis = "rows" if name == "bf16" else "columns"
        exponents = torch.arange(channels(tensor.shape, axis)) % 16 - 8
        found[name] = ChannelSteps(0.3, axis, exponents.to(torch.int8))
    for coder in ("rans", "exp_golomb"):
        save_compressed(own, path, coder=coder, quantizer=AllocatedQuantizer({}, 2.0, "absolute", found))
        loaded, streams = decoded_by_kernels(lambda: load_compressed(path))
        same(loaded, load_compressed(path))
        assert streams == 3, (coder, streams)
        loaded, streams = decoded_by_kernels(lambda: load_compressed(path, dtype=torch.float16))
        same(loaded, load_compressed(path, dtype=torch.float16))
        assert streams == 4, (coder, streams)


def check(folder: Path) -> None:
    by_row = RelativeQuantizer(ratio=0.3, granularity="row")
    path = folder / "model.rdo"
    for coder, kernels in {"rans": 3, "exp_golomb": 4, "huffman": 0}.items():
        save_compressed(state(), path, coder=coder, quantizer=by_row)
        found, streams = decoded_by_kernels(lambda: load_compressed(path))
        same(found, load_compressed(path))
        assert streams == kernels, (coder, streams)
        if coder == "rans":
            found, streams = decoded_by_kernels(lambda: one_by_one(path))
            same(found, load_compressed(path))
            assert streams == kernels + 1, "of the two names of a tied tensor the second decodes it again"
            found, streams = decoded_by_kernels(lambda: load_compressed(path, dtype=torch.bfloat16))
            same(found, load_compressed(path, dtype=torch.bfloat16))
            assert streams == kernels + 1, "float64 is no type of the kernels, bfloat16 is"
    save_compressed({"f16": state()["f16"], "bf16": state()["bf16"]}, path, coder="rans", quantizer=by_row)
    hostile = with_stream(path, "bf16", lambda stream: stream.__setitem__(-3, stream[-3] ^ 1))
    with pytest.raises(CorruptCheckpointError, match="'bf16'"):
        decoded_by_kernels(lambda: load_compressed(hostile))
    check_channels(path)


if __name__ == "__main__":
    many_lanes = patch.object(Layout, "of", lambda symbols, size_log2: Layout(5, 12))  # fewer rounds to interpret
    with many_lanes, tempfile.TemporaryDirectory() as directory:
        check(Path(directory))
    print(TOLD)
