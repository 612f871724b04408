"""Zstandard at three levels, and with as few matches as it can be told to look for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo_harness.coder_peers.base import PEERS, Peer
from rdo_harness.coder_peers.narrow import ByteCompressor

_SLOW_LEVEL = 10
_FEW_MATCHES = {"strategy": 1, "min_match": 7, "window_log": 10, "hash_log": 6}
"""The fast strategy, the longest least match, the smallest window and hash table: mostly Huffman codes of single bytes
are left. The Python package does not expose the library's treatment of literals."""


@PEERS.register("zstd")
@dataclass(frozen=True)
class Zstd(ByteCompressor):
    """Zstandard through the package ``zstandard``; no checksum, no dictionary."""

    name: ClassVar[str] = "zstd"
    requirement: ClassVar[str | None] = "zstandard"
    module: ClassVar[str | None] = "zstandard"
    threaded: ClassVar[bool] = True
    level: int = 3
    few_matches: bool = False

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls(1), cls(3), cls(19), cls(1, few_matches=True)]

    @property
    def label(self) -> str:
        return f"zstd -{self.level}{' few-matches' if self.few_matches else ''}"

    @property
    def slow(self) -> bool:
        return self.level >= _SLOW_LEVEL

    def compress(self, data: bytes, threads: int) -> bytes:
        import zstandard

        options: dict[str, Any] = {"threads": threads if threads > 1 else 0, "write_checksum": 0}
        if self.few_matches:
            options |= _FEW_MATCHES
        parameters = zstandard.ZstdCompressionParameters.from_level(self.level, source_size=len(data), **options)
        return zstandard.ZstdCompressor(compression_params=parameters).compress(data)

    def decompress(self, data: bytes, size: int) -> bytes:
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)

    @classmethod
    def version(cls) -> str:
        import zstandard

        return f"zstandard {zstandard.__version__}, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
