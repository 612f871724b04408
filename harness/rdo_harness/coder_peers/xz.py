"""xz: LZMA2 at preset 9, and with settings for bytes whose position means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo_harness.coder_peers.base import PEERS, Peer
from rdo_harness.coder_peers.narrow import ByteCompressor


@PEERS.register("xz")
@dataclass(frozen=True)
class Xz(ByteCompressor):
    """LZMA2 of Python's standard library at preset 9, a raw stream.

    Args:
        chain: ``"default"``; ``"bytes"``: neither the byte before nor the position as context (lc = lp = pb = 0), as
            weights are; ``"delta"``: differences of neighbouring bytes.
    """

    name: ClassVar[str] = "xz"
    chain: str = "default"

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls(), cls("bytes"), cls("delta")]

    @property
    def label(self) -> str:
        return {"default": "xz -9", "bytes": "xz -9 lc0-pb0", "delta": "xz -9 delta"}[self.chain]

    @property
    def slow(self) -> bool:
        return True

    def _filters(self) -> list[dict[str, Any]]:
        import lzma

        context = {"lc": 0, "lp": 0, "pb": 0} if self.chain == "bytes" else {}
        lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9, **context}
        return [{"id": lzma.FILTER_DELTA, "dist": 1}, lzma2] if self.chain == "delta" else [lzma2]

    def compress(self, data: bytes, threads: int) -> bytes:
        import lzma

        return lzma.compress(data, format=lzma.FORMAT_RAW, filters=self._filters())

    def decompress(self, data: bytes, size: int) -> bytes:
        import lzma

        return lzma.decompress(data, format=lzma.FORMAT_RAW, filters=self._filters())
