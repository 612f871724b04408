"""Operating points of the comparison of coders: the matrices of a checkpoint, quantised."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdo.checkpoint import is_compressible
from rdo.errors import ConfigError
from rdo.quantizers import Quantizer, RelativeQuantizer, UniformQuantizer, row_length
from rdo_harness.coder_peers.base import Matrix
from rdo_harness.model_files import plain_tensors, weight_files

_RATIOS = (2.0**-16, 2.0**6)
"""Between these times the root mean square of a tensor the step for a number of bits is looked for."""
_BISECTIONS = 30


@dataclass(frozen=True)
class Checkpoint:
    """A plain safetensors file or model directory, and the name it has in tables."""

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """``NAME=PATH``, or a path, whose last part without its suffix is the name.

        Raises:
            ConfigError: nothing is at the path.
        """
        name, equals, path = text.partition("=")
        where = Path(path if equals else text)
        if not where.exists():
            raise ConfigError(f"{where}: no such file or directory; give NAME=PATH of safetensors")
        return cls(name if equals else where.stem, where)

    def sha256(self) -> str:
        """Of all its weight files, in order."""
        digest = hashlib.sha256()
        for file in weight_files(self.path):
            with file.open("rb") as stream:
                while piece := stream.read(1 << 24):
                    digest.update(piece)
        return digest.hexdigest()

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors that would be coded; of tensors that are equal to the bit (tied weights) the first.

        Raises:
            ConfigError: there are none.
        """
        found: dict[str, torch.Tensor] = {}
        seen: set[bytes] = set()
        with plain_tensors(self.path) as tensors:
            for name, tensor in tensors.items():
                if is_compressible(name, tensor):
                    content = tensor.contiguous().clone()
                    digest = hashlib.sha256(content.view(torch.uint8).numpy().data).digest()
                    if digest not in seen:
                        found[name] = content
                    seen.add(digest)
        if not found:
            raise ConfigError(f"{self.path}: no floating-point matrices to code")
        return found


@dataclass(frozen=True)
class Target:
    """What was asked for: bits of order-0 entropy per weight, or a quantizer with one step per tensor."""

    bits: float | None = None
    quantizer: Quantizer | None = None

    @property
    def label(self) -> str:
        if self.bits is not None:
            return f"{self.bits:g} bits"
        assert self.quantizer is not None
        config = self.quantizer.config()
        return f"step {config['step']:g}" if "step" in config else f"step {config['ratio']:g} rms"

    def find(self, weights: dict[str, torch.Tensor]) -> Quantizer:
        """The quantizer: for bits, that whose step relative to each tensor gives this entropy, to three digits.

        Raises:
            ConfigError: no step does.
        """
        if self.quantizer is not None:
            return self.quantizer
        assert self.bits is not None
        low, high = map(math.log, _RATIOS)
        if not mean_entropy(weights, _relative(high)) < self.bits < mean_entropy(weights, _relative(low)):
            raise ConfigError(f"no step gives these weights {self.bits:g} bits of entropy; ask for others with --bits")
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = mean_entropy(weights, _relative(middle)) > self.bits
            low, high = (middle, high) if above else (low, middle)
            if _relative(low) == _relative(high):
                break
        return _relative((low + high) / 2)


def _relative(log_ratio: float) -> RelativeQuantizer:
    return RelativeQuantizer(ratio=float(f"{math.exp(log_ratio):.3g}"))


def targets(bits: Sequence[float], ratios: Sequence[float], steps: Sequence[float]) -> list[Target]:
    """A target of each; finest first."""
    return [
        *(Target(bits=value) for value in sorted(bits, reverse=True)),
        *(Target(quantizer=RelativeQuantizer(ratio=ratio)) for ratio in sorted(ratios)),
        *(Target(quantizer=UniformQuantizer(step=step)) for step in sorted(steps)),
    ]


def mean_entropy(weights: dict[str, torch.Tensor], quantizer: Quantizer) -> float:
    """Order-0 entropy of the symbols, each tensor by itself, in bits per weight."""
    total, bits = 0, 0.0
    for name, weight in weights.items():
        counts = quantizer.counts(weight, name).double().numpy()
        total += weight.numel()
        bits += float((counts * np.log2(weight.numel() / counts)).sum())
    return bits / total


def quantised(weights: dict[str, torch.Tensor], quantizer: Quantizer) -> list[Matrix]:
    """Every tensor's symbols, flat in C order."""
    matrices = []
    for name, weight in weights.items():
        tensor = quantizer.quantize(weight, name)
        symbols = np.ascontiguousarray(tensor.symbols.reshape(-1).numpy())
        matrices.append(Matrix(symbols, weight.reshape(-1), float(tensor.steps), row_length(weight.shape)))
    return matrices
