"""Bytes of compressed files of fixed weights: exact, so the least change shows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from asv_bench.arms import SHORT, figure, one_thread, skipped_where_missing

KINDS: dict[str, dict[str, Any]] = {
    "fixed_length": {"coder": "fixed_length"},
    "huffman": {"coder": "huffman"},
    "exp_golomb": {"coder": "exp_golomb"},
    "rans": {"coder": "rans"},
    "rans, step by row": {"coder": "rans", "granularity": "row"},
    "rans, fine step": {"coder": "rans", "ratio": 0.02},
    "context": {"coder": "context"},
    "smallest of rans and context": {"coder": ["rans", "context"]},
    "lossless": {"lossless": True},
}


def weights() -> dict[str, Tensor]:
    """A small model of 140,000 weights from a generalized Gaussian whose scale differs by tensor and row."""
    generator = np.random.default_rng(0)
    sizes = {"embedding": (500, 96), "tiny": (6, 8), "one": (1, 96)}
    sizes |= {f"layer.{number}.{part}": (96, 96) for number in range(2) for part in ("query", "key", "value", "out")}
    sizes |= {f"layer.{number}.bias": (96,) for number in range(2)}
    state = {}
    for number, (name, size) in enumerate(sizes.items()):
        scale = 0.05 * (1 + number % 4) * generator.lognormal(0.0, 0.4, (size[0], *[1] * (len(size) - 1)))
        draws = generator.gamma(1 / 0.8, size=size) ** (1 / 0.8) * generator.choice([-1, 1], size)
        state[f"{name}.weight"] = torch.from_numpy((scale * draws).astype(np.float32))
    return state


class Files:
    """One file of each kind; every byte counts."""

    version = 1
    param_names = ("kind",)
    params: ClassVar[Sequence[Any]] = (["rans"] if SHORT else list(KINDS),)

    def setup(self, kind: str) -> None:
        one_thread()
        self.state = weights()
        self.track_bytes(kind)

    @figure("bytes", gate="bytes")
    def track_bytes(self, kind: str) -> int:
        with skipped_where_missing():
            import rdo
            from rdo.coders import CODERS

            options = dict(KINDS[kind])
            coders = options.get("coder", [])
            missing = {coders} if isinstance(coders, str) else set(coders)
            if missing - set(CODERS.names()):
                raise NotImplementedError("not in this commit: a coder")
            step = {"ratio": options.pop("ratio", 0.3), "granularity": options.pop("granularity", "tensor")}
            if not options.get("lossless"):
                options["quantizer"] = rdo.RelativeQuantizer(**step)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.rdo"
                rdo.save_compressed(self.state, path, **options)
                return path.stat().st_size
