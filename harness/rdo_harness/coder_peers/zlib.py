"""zlib: DEFLATE, level 9, and with its Huffman codes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.coder_peers.base import PEERS, Peer
from rdo_harness.coder_peers.narrow import ByteCompressor

_RAW_WINDOW = -15
"""32 KiB, without zlib's head and checksum: no other arm has a checksum either."""


@PEERS.register("zlib")
@dataclass(frozen=True)
class Zlib(ByteCompressor):
    """zlib of Python's standard library, raw DEFLATE."""

    name: ClassVar[str] = "zlib"
    huffman_only: bool = False

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls(), cls(huffman_only=True)]

    @property
    def label(self) -> str:
        return "zlib -9 Huffman-only" if self.huffman_only else "zlib -9"

    @property
    def slow(self) -> bool:
        return not self.huffman_only

    def compress(self, data: bytes, threads: int) -> bytes:
        import zlib

        strategy = zlib.Z_HUFFMAN_ONLY if self.huffman_only else zlib.Z_DEFAULT_STRATEGY
        compressor = zlib.compressobj(9, zlib.DEFLATED, _RAW_WINDOW, 9, strategy)
        return compressor.compress(data) + compressor.flush()

    def decompress(self, data: bytes, size: int) -> bytes:
        import zlib

        return zlib.decompress(data, _RAW_WINDOW, max(size, 1))

    @classmethod
    def version(cls) -> str:
        import zlib

        return f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
