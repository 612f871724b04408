"""Writes the committed files of the current format version: ``python -m tests.make_fixtures``, once for each version.

Files of a version never change afterwards: a reader must decode them for ever. Those of older versions are left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from rdo.channels import Axis, ChannelSteps, channels
from rdo.checkpoint import load_compressed, save_compressed
from rdo.checkpoint.container import DTYPES, dtype_name
from rdo.checkpoint.manifest import VERSION
from rdo.coders import make_coder
from rdo.quantizers import AllocatedQuantizer, RelativeQuantizer, UniformQuantizer

FIXTURES = Path(__file__).parent / "fixtures"
BY_ROW, COARSE, FINE = RelativeQuantizer(ratio=0.3, granularity="row"), UniformQuantizer(0.25), UniformQuantizer(2**-8)
KINDS: dict[str, dict[str, Any]] = {
    "fixed_length": {"coder": "fixed_length", "quantizer": COARSE},
    "huffman": {"coder": "huffman", "quantizer": COARSE},
    "exp_golomb-rank": {"coder": make_coder("exp_golomb", k=0, mapping="rank"), "quantizer": COARSE},
    "exp_golomb-zigzag": {"coder": make_coder("exp_golomb", k=1, mapping="zigzag"), "quantizer": COARSE},
    "rans-row": {"coder": "rans", "quantizer": BY_ROW, "raw_dtype": torch.bfloat16},
    "rans-tensor": {"coder": "rans", "quantizer": COARSE},
    "rans-escapes": {"coder": "rans", "quantizer": FINE},
    "context": {"coder": "context", "quantizer": COARSE},
    "smallest": {"coder": ["fixed_length", "huffman", "exp_golomb", "rans"], "quantizer": COARSE},
    "lossless": {"lossless": True},
}
RAW: dict[str, dict[str, Any]] = {"raw": {}, "raw-bfloat16": {"raw_dtype": torch.bfloat16}}
SEGMENTS = [
    patch("rdo.coders.rans._SEGMENT_SIZES_LOG2", range(12, 13)),
    *(
        patch(f"rdo.coders.{name}._SEGMENT_SIZE_LOG2", 12)
        for name in ("exp_golomb", "fixed_length", "huffman", "float_bits", "context")
    ),
]
"""Segments are so short that the larger tensors have two."""


def weights() -> dict[str, torch.Tensor]:
    """Every shape of tensor that the format knows apart."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    embedding = normal(70, 80) ** 3
    return {
        "embedding.weight": embedding,
        "layer.weight": normal(24, 65),
        "layer.bias": normal(24),
        "half.weight": normal(30, 200).bfloat16(),
        "conv.weight": normal(3, 4, 5, 7),
        "constant.weight": torch.full((9, 9), 0.5),
        "small.weight": normal(5, 3),
        "head.weight": embedding,
    }


def raw_weights() -> dict[str, torch.Tensor]:
    """Every data type that is stored as it is, every size and every kind of name."""
    generator = torch.Generator().manual_seed(1)
    state = {
        dtype_name(dtype): torch.randn(7, generator=generator).mul(40).to(dtype)
        for dtype in DTYPES.values()
        if dtype.is_floating_point or dtype.is_signed or dtype == torch.bool
    }
    state |= {
        dtype_name(dtype): torch.arange(7).to(dtype) * (dtype.itemsize * 8 + 1)
        for dtype in DTYPES.values()
        if dtype_name(dtype) not in state
    }
    odd_names = {"": 2, "a::b": 3, "a::stream": 4, "::raw_crc32c": 5, "Größe": 6}
    return {
        **state,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(3, 0, 2),
        **{name: torch.full((number,), float(number)) for name, number in odd_names.items()},
        "matrix": torch.randn(9, 11, generator=generator).double(),
        "tied": state["int64"],
    }


def channel_weights() -> dict[str, torch.Tensor]:
    """Rows and columns, even and odd numbers of them, of tensors of one to three axes; some in two segments."""
    generator = torch.Generator().manual_seed(2)
    return {
        "rows.weight": torch.randn(9, 16, generator=generator),
        "columns.weight": torch.randn(61, 70, generator=generator).bfloat16(),
        "rows.experts": torch.randn(2, 4, 9, generator=generator).half(),
        "columns.experts": torch.randn(2, 4, 9, generator=generator).half(),
        "columns.vector": torch.randn(5, generator=generator),
        "whole.weight": torch.randn(6, 8, generator=generator),
        "bias": torch.randn(5, generator=generator),
    }


def channel_quantizer(state: dict[str, torch.Tensor]) -> AllocatedQuantizer:
    """Every exponent that there is, in tensors that are called after what has steps."""
    found: dict[str, ChannelSteps] = {}
    axis: Axis
    for name, tensor in state.items():
        for axis in ("rows", "columns"):
            if name.startswith(axis):
                exponents = torch.arange(channels(tensor.shape, axis)) * 7 % 16 - 8
                found[name] = ChannelSteps(0.3, axis, exponents.to(torch.int8))
    return AllocatedQuantizer({"whole.weight": 0.4}, 2.0, "absolute", found)


def main() -> None:
    for patched in SEGMENTS:
        patched.start()
    for name, options in KINDS.items():
        write(3, name, weights(), **options)
    for name, options in RAW.items():
        write(3, name, raw_weights(), compressible=lambda name, _: name == "matrix", **options)
    state = channel_weights()
    for coder in ("fixed_length", "huffman", "exp_golomb", "rans", "context"):
        quantizer = channel_quantizer(state)
        write(4, coder, state, coder=coder, quantizer=quantizer, compressible=lambda name, _: name != "bias")


def write(version: int, name: str, state: dict[str, torch.Tensor], **options: Any) -> None:
    path = FIXTURES / f"v{version}-{name}.rdo"
    if version < VERSION and path.exists():
        return
    save_compressed(state, path, **options)
    loaded = {key: tensor.clone() for key, tensor in load_compressed(path).items()}
    save_file(loaded, path.with_suffix(".expected.safetensors"))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
