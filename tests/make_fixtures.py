"""Writes the committed files of the current format version: ``python -m tests.make_fixtures``, once for each version.

Files of a version never change afterwards: a reader must decode them for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from rdo.checkpoint import load_compressed, save_compressed
from rdo.checkpoint.manifest import VERSION
from rdo.coders import make_coder
from rdo.quantizers import RelativeQuantizer, UniformQuantizer

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


def main() -> None:
    for patched in SEGMENTS:
        patched.start()
    for name, options in KINDS.items():
        path = FIXTURES / f"v{VERSION}-{name}.rdo"
        save_compressed(weights(), path, **options)
        loaded = {key: tensor.clone() for key, tensor in load_compressed(path).items()}
        save_file(loaded, path.with_suffix(".expected.safetensors"))
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
