"""The coders of rdo, all that are registered, as they code a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from rdo.checkpoint.threads import in_threads
from rdo.coders import CODERS, Bitstream, EntropyCoder, coder_from_config, make_coder
from rdo_harness.coder_peers.base import LENGTH_BYTES, PEERS, Clock, Matrix, Peer, Trip, check_same

_GOLOMB_ORDERS = range(6)
_MAPPINGS = ("rank", "zigzag")
A = TypeVar("A")
B = TypeVar("B")


@PEERS.register("rdo")
@dataclass(frozen=True)
class Own(Peer):
    """A coder of this package: registered, and with its default options unless it is exp_golomb."""

    name: ClassVar[str] = "rdo"
    threaded: ClassVar[bool] = True
    warms_up: ClassVar[bool] = True
    coder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def arms(cls) -> list[Peer]:
        coders: list[EntropyCoder] = []
        for name in CODERS.names():
            if name == "exp_golomb":
                coders += [make_coder(name, k=k, mapping=mapping) for mapping in _MAPPINGS for k in _GOLOMB_ORDERS]
            else:
                coders.append(make_coder(name))
        return [cls(coder.config()) for coder in coders]

    @property
    def label(self) -> str:
        if self.coder["name"] == "exp_golomb":
            return f"EG{self.coder['k']} {self.coder['mapping']}"
        return f"rdo {self.coder['name']}"

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        coder = coder_from_config(self.coder)
        encoding, decoding = Clock(), Clock()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # as many as segments are shared out over
        share = _one_by_one if threads == 1 else in_threads
        try:
            with encoding.running():
                streams: list[Bitstream] = share(lambda matrix: coder.encode(matrix.symbols), matrices)
            pairs = list(zip(streams, matrices, strict=True))
            with decoding.running():
                decoded = share(lambda pair: coder.decode(pair[0], pair[1].symbols.size), pairs)
        finally:
            torch.set_num_threads(before)
        check_same(self.label, matrices, decoded)
        # a table and a payload, and the length of each
        nbytes = sum(stream.nbytes + 2 * LENGTH_BYTES for stream in streams)
        return Trip(nbytes, packing, encoding, decoding)

    @classmethod
    def version(cls) -> str:
        import rdo

        return f"rdo {rdo.__version__}"


def _one_by_one(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    return [function(item) for item in items]
