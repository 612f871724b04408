"""The coders of rdo, all that are registered, as they code a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from rdo.checkpoint.manifest import INDEX_BYTES
from rdo.checkpoint.threads import for_each
from rdo.coders import CODERS, EntropyCoder, coder_from_config, make_coder
from rdo_harness.coder_peers.base import LENGTH_BYTES, PEERS, Clock, Matrix, Peer, Trip, check_same

_GOLOMB_ORDERS = range(6)
_MAPPINGS = ("rank", "zigzag")


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
        by_name = {str(number): matrix for number, matrix in enumerate(matrices)}
        sizes = {name: matrix.symbols.size for name, matrix in by_name.items()}
        try:
            with encoding.running():
                streams = for_each(lambda name: coder.encode(by_name[name].symbols, by_name[name].row_length), sizes)
            with decoding.running():
                decoded = for_each(
                    lambda name: coder.decode(streams[name], sizes[name], by_name[name].row_length), sizes
                )
        finally:
            torch.set_num_threads(before)
        check_same(self.label, matrices, list(decoded.values()))
        # the length of the table, and what the index of a checkpoint has for each segment
        nbytes = sum(stream.nbytes + LENGTH_BYTES + INDEX_BYTES * len(stream.lengths) for stream in streams.values())
        return Trip(nbytes, packing, encoding, decoding)

    @classmethod
    def version(cls) -> str:
        import rdo

        return f"rdo {rdo.__version__}"
