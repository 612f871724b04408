"""The peers: which worker runs in which environment, and what it wants."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdo.errors import UnknownNameError
from rdo_harness.peers.environments import Environment, PeerError, environment
from rdo_harness.peers.process import worker_path


@dataclass(frozen=True)
class Peer:
    """One method of one library.

    Args:
        name: of the peer, and of the method in suites.
        library: the environment that it runs in, named after the package that it is built for.
        worker: its script among ``workers/``.
        whole_model: it wants a transformers model; otherwise matrices are enough.
        calibrated: it wants batches of inputs.
        checks: options of the method of the same name, of one operating point each, that `rdo peers check` tries.
        timeout: seconds that a job may take.
    """

    name: str
    library: str
    worker: str
    whole_model: bool = False
    calibrated: bool = False
    checks: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    timeout: float = 4 * 3600.0

    @property
    def package(self) -> str:
        """The package that does the work."""
        return self.library

    def environment(self) -> Environment:
        return environment(self.library)

    def python(self) -> Path:
        """The interpreter that the worker runs under.

        Raises:
            PeerError: the peer is not installed; the message has the line that installs it.
        """
        where = self.environment()
        state = where.state()
        if state != "installed":
            raise PeerError(f"the peer {self.name!r} is {state}; install it: rdo peers install {self.name}")
        return where.python

    def sources(self) -> list[Path]:
        """The scripts that determine what it answers."""
        return [worker_path(self.worker), worker_path("peer_job.py")]


_INTEGERS = tuple({"bits": (bits,), "group_sizes": (size,)} for bits, size in ((4, 64), (2, 64), (4, 0)))
_PRUNING = ({"sparsities": (0.5,), "relative_steps": (0.3,)},)
_STEPS = tuple({"qps": (qp,), "dependent": dependent} for qp in (-20, -12) for dependent in (True, False))
_PRUNERS = ("magnitude", "sparsegpt", "wanda")
_AFTER_PRUNING = tuple({"bits": (4,), "pruner": pruner, "sparsities": (0.5,)} for pruner in _PRUNERS)

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("awq", "llmcompressor", "with_llmcompressor.py", True, True, _INTEGERS),
        Peer("gptq", "llmcompressor", "with_llmcompressor.py", True, True, (*_INTEGERS, *_AFTER_PRUNING)),
        Peer("hqq", "hqq", "with_hqq.py", checks=_INTEGERS),
        Peer("nncodec", "nncodec", "with_nncodec.py", checks=_STEPS),
        Peer("quanto", "optimum-quanto", "with_quanto.py", checks=({"bits": (8,)}, *_INTEGERS)),
        Peer("sparsegpt", "llmcompressor", "with_llmcompressor.py", True, True, _PRUNING),
        Peer("torchao", "torchao", "with_torchao.py", checks=_INTEGERS),
        Peer("wanda", "llmcompressor", "with_llmcompressor.py", True, True, _PRUNING),
    )
}


def peer(name: str) -> Peer:
    """The peer of this name.

    Raises:
        UnknownNameError: there is none; the nearest name is suggested.
    """
    if name in PEERS:
        return PEERS[name]
    near = difflib.get_close_matches(name, PEERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownNameError(f"unknown peer {name!r}; {hint}known: {', '.join(sorted(PEERS))}")
