"""ZipNN (Hershcovitch et al., arXiv 2411.05239): lossless compression of the weights as floating-point numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from rdo_harness.coder_peers.base import LENGTH_BYTES, PEERS, Clock, Matrix, Peer, RoundTripError, Trip

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@PEERS.register("zipnn")
@dataclass(frozen=True)
class ZipNN(Peer):
    """ZipNN on the bytes of each tensor: of the original weights, or of the dequantised ones.

    Another footing than symbols: it keeps more of the original weights than any quantizer does, and of the dequantised
    weights it is not told that they are multiples of a step.
    """

    name: ClassVar[str] = "zipnn"
    requirement: ClassVar[str | None] = "zipnn"
    module: ClassVar[str | None] = "zipnn"
    distribution: ClassVar[str | None] = "zipnn"
    threaded: ClassVar[bool] = True
    dtype: str = "float32"
    dequantised: bool = False

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls("float32"), cls("bfloat16"), cls("float32", True), cls("bfloat16", True)]

    @property
    def label(self) -> str:
        return f"zipnn {'dequantised' if self.dequantised else 'original'} {self.dtype}"

    @property
    def footing(self) -> str:
        return f"{'dequantised' if self.dequantised else 'original'} weights as {self.dtype}"

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        compressor = self.compressor(threads)
        encoding, decoding = Clock(), Clock()
        nbytes = 0
        for number, matrix in enumerate(matrices):
            plain = self._bytes(matrix)
            scratch = bytearray(plain)  # it reorders the bytes of its input in place
            with encoding.running():
                stream = compressor.compress(scratch)
            with decoding.running():
                decoded = compressor.decompress(stream)
            if bytes(decoded) != plain:
                raise RoundTripError(f"{self.label}: decoded bytes of tensor {number} differ from those encoded")
            nbytes += len(stream) + LENGTH_BYTES
        return Trip(nbytes, f"{packing}: {self.footing}", encoding, decoding)

    def compressor(self, threads: int) -> Any:
        """The library's own object, whose ``compress`` changes its input."""
        import zipnn

        return zipnn.ZipNN(input_format="byte", bytearray_dtype=self.dtype, threads=threads)

    def _bytes(self, matrix: Matrix) -> bytes:
        weights = torch.from_numpy(matrix.symbols).float() * matrix.step if self.dequantised else matrix.weights
        return weights.to(_DTYPES[self.dtype]).contiguous().view(torch.uint8).numpy().tobytes()
