"""constriction's ANS coder (Bamler, arXiv 2201.01741): the oracle of density for a static order-0 table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Histogram, Symbols
from rdo.coders.varint import Reader, Writer
from rdo_harness.coder_peers.base import LENGTH_BYTES, PEERS, Clock, Matrix, Peer, Trip, check_same


@PEERS.register("constriction")
@dataclass(frozen=True)
class Constriction(Peer):
    """constriction's stack coder with a categorical model of 24 bits per tensor; the counts are in the table."""

    name: ClassVar[str] = "constriction"
    requirement: ClassVar[str | None] = "constriction>=0.4"
    module: ClassVar[str | None] = "constriction"
    distribution: ClassVar[str | None] = "constriction"

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls()]

    @property
    def label(self) -> str:
        return "constriction ANS"

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        encoding, decoding = Clock(), Clock()
        with encoding.running():
            streams = [_encode(matrix.symbols) for matrix in matrices]
        with decoding.running():
            decoded = [_decode(*stream, matrix.symbols.size) for stream, matrix in zip(streams, matrices, strict=True)]
        check_same(self.label, matrices, decoded)
        nbytes = sum(table.size + words.nbytes + 2 * LENGTH_BYTES for table, words in streams)
        return Trip(nbytes, packing, encoding, decoding)


def _encode(symbols: Symbols) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    import constriction

    histogram = Histogram.of(symbols)
    table = Writer()
    table.ascending(histogram.values)
    table.numbers(histogram.counts)
    if len(histogram.values) < 2:  # its models have two symbols or more
        return table.bytes(), np.empty(0, np.uint32)
    coder = constriction.stream.stack.AnsCoder()
    indices = np.searchsorted(histogram.values, symbols).astype(np.int32)
    coder.encode_reverse(indices, _model(histogram.counts))
    return table.bytes(), coder.get_compressed()


def _decode(table: NDArray[np.uint8], words: NDArray[np.uint32], count: int) -> Symbols:
    import constriction

    reader = Reader(table)
    values = reader.ascending(max(count, 1))
    counts = reader.numbers(len(values))
    if len(values) < 2:
        return np.repeat(values, counts).astype(np.int32)
    indices = constriction.stream.stack.AnsCoder(words).decode(_model(counts), count)
    return values.astype(np.int32)[indices]


def _model(counts: NDArray[np.int64]) -> Any:
    import constriction

    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
