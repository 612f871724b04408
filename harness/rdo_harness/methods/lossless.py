"""Lossless compression of the weights as bfloat16: where every method that rounds starts from."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rdo.errors import ConfigError
from rdo_harness.coder_peers.base import Peer
from rdo_harness.decoding import Decoded
from rdo_harness.measure import CODED_SIZES
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.peers.environments import PeerError


@dataclass(frozen=True)
class Lossless(Method):
    """All tensors in bfloat16, written as a safetensors file, which a library then compresses as a whole.

    The compressed file is read back, and the weights in it are evaluated: those of bfloat16, not those of float32.
    """

    coder: ClassVar[type[Peer]]

    coded_afterwards: ClassVar[bool] = False  # whatever the suite's coders are, it has one of its own

    def __post_init__(self) -> None:
        if self.quantizers():
            raise ConfigError("give no quantisation steps: lossless methods keep the weights, as bfloat16")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def options(self) -> dict[str, Any]:
        """Settings of the library."""
        return {}

    def points(self) -> list[OperatingPoint]:
        return [OperatingPoint(rate=None, quantizer=None, options={"dtype": "bfloat16", **self.options()})]

    @abstractmethod
    def compress(self, data: bytes) -> bytes:
        """One stream of a file."""

    @abstractmethod
    def decompress(self, stream: bytes) -> bytes:
        """The file of a stream."""

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        missing = self.coder.missing()
        if missing is not None:
            raise PeerError(f"{missing}, or with the other coders: pip install 'backslash-rdo[peers]'")
        stream = self.compress(_in_bfloat16(model))
        path.write_bytes(stream)
        return {
            "peer": self.name,
            "peer_versions": self.coder.version(),
            "native_coverage": 1.0,
            "native_bytes": len(stream),
        }

    def read(self, path: Path) -> Decoded:
        plain = path.with_suffix(".safetensors")
        plain.write_bytes(self.decompress(path.read_bytes()))
        return _DecodedFile(plain, path.stat().st_size)


class _DecodedFile(Decoded):
    """A plain file of weights, and the size of the stream that it came from."""

    def __init__(self, plain: Path, file_bytes: int) -> None:
        from safetensors import safe_open

        with safe_open(str(plain), framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            tied = file.metadata() or {}
        self._file_bytes = file_bytes
        self._parameters = sum(tensor.numel() for tensor in found.values() if tensor.is_floating_point())
        self.weights = found | {name: found[owner] for name, owner in tied.items()}

    def sizes(self) -> dict[str, Any]:
        return {
            "coded_parameters": self._parameters,
            "file_bytes": self._file_bytes,
            "payload_bytes": self._file_bytes,
            **dict.fromkeys(("raw_bytes", "table_bytes", "scale_bytes", "header_bytes"), 0),
            **dict.fromkeys(CODED_SIZES),  # there are no symbols
        }


def _in_bfloat16(model: nn.Module) -> bytes:
    """A safetensors file of all floating-point tensors in bfloat16, tied ones once; its metadata name these."""
    from safetensors.torch import save

    owners: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        owner = owners.setdefault(tensor.data_ptr(), name)
        if owner != name:
            tied[name] = owner
        else:
            tensors[name] = (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous()
    return save(tensors, metadata=tied)
