"""ZipNN (Hershcovitch et al., arXiv 2411.05239), made for weights: exponents apart, Huffman codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.coder_peers import zipnn
from rdo_harness.coder_peers.base import Peer
from rdo_harness.methods.lossless import Lossless
from rdo_harness.registries import METHODS


@METHODS.register("zipnn")
@dataclass(frozen=True)
class ZipNN(Lossless):
    """The weights in bfloat16, compressed by ZipNN without loss."""

    name: ClassVar[str] = "zipnn"
    coder: ClassVar[type[Peer]] = zipnn.ZipNN

    def compress(self, data: bytes) -> bytes:
        scratch = bytearray(data)  # it reorders the bytes of its input in place
        return bytes(zipnn.ZipNN("bfloat16").compressor(threads=1).compress(scratch))

    def decompress(self, stream: bytes) -> bytes:
        return bytes(zipnn.ZipNN("bfloat16").compressor(threads=1).decompress(stream))
