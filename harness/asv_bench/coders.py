"""Coders on a million symbols of a generalized Gaussian source, alone and beside other packages; one thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from asv_bench.arms import SHORT, figure, milliseconds, one_thread, ratio, skipped_where_missing

SHAPE = 0.7
SCALES = {"1 bit": 0.121, "2.5 bits": 0.514}
"""Scale in steps that gives the source about this entropy."""
SYMBOLS = 1 << (14 if SHORT else 20)
ROW = 1024
NANOSECONDS = 1e6 / SYMBOLS
"""From milliseconds for all symbols to nanoseconds for one."""
CODERS = ["rans"] if SHORT else ["rans", "context", "huffman", "exp_golomb", "fixed_length"]


@lru_cache
def drawn(source: str) -> NDArray[np.int32]:
    """Rounded draws with a fixed seed, int32 [SYMBOLS]."""
    generator = np.random.default_rng(0)
    magnitudes = generator.gamma(1 / SHAPE, size=SYMBOLS) ** (1 / SHAPE)
    return np.rint(SCALES[source] * magnitudes * generator.choice([-1, 1], SYMBOLS)).astype(np.int32)


def entropy_bits(symbols: NDArray[np.int32]) -> float:
    """Empirical order-0 entropy of a symbol."""
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(shares * np.log2(shares)).sum())


class Coder:
    """A registered coder with its default options, and symbols that it has coded and decoded once."""

    version = 1
    timeout = 300

    def prepare(self, coder: str, source: str) -> None:
        one_thread()
        self.symbols = drawn(source)
        with skipped_where_missing():
            import rdo.coders

            if coder not in rdo.coders.CODERS.names():
                raise NotImplementedError(f"this commit has no coder {coder!r}")
            self.coder = rdo.coders.make_coder(coder)
            self.row = (ROW,) if coder == "context" else ()
        self.stream = self.encode()
        if not np.array_equal(self.decode(), self.symbols):
            raise AssertionError(f"{coder} decoded other symbols than were encoded")

    def encode(self) -> Any:
        return self.coder.encode(self.symbols, *self.row)

    def decode(self) -> NDArray[np.int32]:
        return self.coder.decode(self.stream, self.symbols.size, *self.row)


class Speed(Coder):
    """Time of a symbol."""

    param_names = ("coder", "source")
    params: ClassVar[Sequence[Any]] = (CODERS, list(SCALES)[-1:] if SHORT else list(SCALES))

    def setup(self, coder: str, source: str) -> None:
        self.prepare(coder, source)

    @figure("ns a symbol")
    def track_encode(self, coder: str, source: str) -> float:
        return milliseconds(self.encode) * NANOSECONDS

    @figure("ns a symbol")
    def track_decode(self, coder: str, source: str) -> float:
        return milliseconds(self.decode) * NANOSECONDS


class Size(Coder):
    """Bits of a symbol, tables and the lengths of segments (4 bytes each) counted."""

    param_names = ("coder", "source")
    params: ClassVar[Sequence[Any]] = Speed.params

    def setup(self, coder: str, source: str) -> None:
        self.prepare(coder, source)

    @figure("bits a symbol", gate="bytes")
    def track_bits(self, coder: str, source: str) -> float:
        segments = len(getattr(self.stream, "lengths", ()))
        return 8 * (self.stream.nbytes + 4 * segments) / self.symbols.size

    @figure("% of the order-0 entropy")
    def track_percent_of_entropy(self, coder: str, source: str) -> float:
        return 100 * self.track_bits(coder, source) / entropy_bits(self.symbols)


class Zstd:
    """zstd -1 on the symbols as bytes."""

    def __init__(self, symbols: NDArray[np.int32]) -> None:
        import zstandard

        self.data = symbols.clip(-128, 127).astype(np.int8).tobytes()
        self.compressor, self.decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        self.coded = self.encode()
        self.nbytes = len(self.coded)

    def encode(self) -> bytes:
        return bytes(self.compressor.compress(self.data))

    def decode(self) -> bytes:
        return bytes(self.decompressor.decompress(self.coded))


class Constriction:
    """constriction's ANS with a static table."""

    def __init__(self, symbols: NDArray[np.int32]) -> None:
        import constriction

        values, indices, counts = np.unique(symbols, return_inverse=True, return_counts=True)
        self.indices, self.stack = indices.astype(np.int32), constriction.stream.stack.AnsCoder
        self.model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
        self.coded = self.encode()
        self.nbytes = self.coded.nbytes + 2 * values.size

    def encode(self) -> NDArray[np.uint32]:
        coder = self.stack()
        coder.encode_reverse(self.indices, self.model)
        return coder.get_compressed()

    def decode(self) -> NDArray[np.int32]:
        return self.stack(self.coded).decode(self.model, self.indices.size)


PEERS: dict[str, type[Zstd] | type[Constriction]] = {"zstd": Zstd, "constriction": Constriction}


class AgainstPeers(Coder):
    """Beside zstd -1 and constriction, in turns, at 2.5 bits."""

    param_names = ("coder", "peer")
    params: ClassVar[Sequence[Any]] = (CODERS, ["constriction"] if SHORT else list(PEERS))

    def setup(self, coder: str, peer: str) -> None:
        self.prepare(coder, "2.5 bits")
        with skipped_where_missing():
            self.peer = PEERS[peer](self.symbols)

    @figure("ours / theirs", gate="ratio", peer="zstd")
    def track_encode(self, coder: str, peer: str) -> float:
        return ratio(self.encode, self.peer.encode)

    @figure("ours / theirs", gate="ratio", peer="zstd")
    def track_decode(self, coder: str, peer: str) -> float:
        return ratio(self.decode, self.peer.decode)

    @figure("ours / theirs")
    def track_size(self, coder: str, peer: str) -> float:
        return float(self.stream.nbytes / self.peer.nbytes)
