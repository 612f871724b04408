"""Zstandard, what most software compresses files with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo.errors import ConfigError
from rdo_harness.coder_peers import zstd
from rdo_harness.coder_peers.base import Peer
from rdo_harness.methods.lossless import Lossless
from rdo_harness.registries import METHODS


@METHODS.register("zstd")
@dataclass(frozen=True)
class Zstd(Lossless):
    """The weights in bfloat16, compressed by Zstandard without loss.

    Args:
        level: 1 (fast) to 22 (small).
    """

    name: ClassVar[str] = "zstd"
    coder: ClassVar[type[Peer]] = zstd.Zstd
    level: int = 19

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.level <= 22:
            raise ConfigError(f"zstd has levels from 1 to 22, got {self.level}")

    def options(self) -> dict[str, Any]:
        return {"level": self.level}

    def compress(self, data: bytes) -> bytes:
        return zstd.Zstd(self.level).compress(data, threads=1)

    def decompress(self, stream: bytes) -> bytes:
        return zstd.Zstd(self.level).decompress(stream, size=0)  # the frame says how much it holds
