"""Tries a peer on tiny models through the very method that suites use, and records what came of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdo.checkpoint import inspect_compressed, load_quantized
from rdo_harness.architectures.base import Architecture
from rdo_harness.methods.base import Context
from rdo_harness.peers import expression
from rdo_harness.peers.catalogue import Peer
from rdo_harness.peers.environments import PeerError
from rdo_harness.peers.sample import samples
from rdo_harness.registries import METHODS
from rdo_harness.resources import provenance
from rdo_harness.results import Row, append_row, read_rows
from rdo_harness.tasks.base import PreparedTask

_NOTE = (
    "Written by `rdo peers check`. A row is done if the peer changed at least 95 % of the weights that it supports, "
    "and these have the sparsity or the number of levels asked for, and are integers times the stated scales. "
    "Coverage is the share of the compressible weights that the peer changed. Sizes are of whole models: native with "
    "the weights that the peer left alone in 16 bits, ours with those rounded, and norms and biases in 32 bits."
)
_SEED = 0
_BATCH = 8


def rows_path(out: Path) -> Path:
    """Where the outcomes are."""
    return out / "runs" / "peers.jsonl"


def check(peer: Peer, out: Path, tell: Callable[[str], None]) -> list[Row]:
    """Run every operating point of a peer's checks on every sample model; one row each, appended to the file.

    A row has an ``error`` if the peer failed or did not do what it was asked for.

    Raises:
        PeerError: it is not installed.
    """
    peer.python()
    rows = []
    for architecture, prepared in samples():
        for options in peer.checks:
            row = {"peer": peer.name, "architecture": architecture.name, "asked": options, **provenance()}
            started = time.perf_counter()
            try:
                row |= _tried(peer, architecture, prepared, options)
                outcome = f"{row['native_coverage']:.0%} of the weights, {row['file_bytes']} bytes"
            except Exception as error:  # the next model may work; the row keeps the reason
                row["error"] = f"{type(error).__name__}: {error}"
                outcome = row["error"].strip().splitlines()[-1]
            row["seconds"] = time.perf_counter() - started
            tell(f"{peer.name} on {architecture.name}, {_described(options)}: {outcome} ({row['seconds']:.0f} s)")
            append_row(rows_path(out), row)
            rows.append(row)
    return rows


def _tried(peer: Peer, architecture: Architecture, prepared: PreparedTask, options: dict[str, Any]) -> Row:
    method = METHODS.get(peer.name)(**options)
    (point,) = method.points()
    model = architecture.build(_SEED, prepared.task).eval()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.rdo"
        context = Context(architecture, prepared, _BATCH, _SEED, Path(temporary) / "peers")
        facts = method.apply(model, point, context, path)
        info = inspect_compressed(path)
        weights = expression.decoded(*load_quantized(path))
    state = model.state_dict()
    lost = [name for name in state if name not in weights or weights[name].shape != state[name].shape]
    if lost:
        raise PeerError(f"the file lacks {lost}")
    return {**facts, "file_bytes": info.file_bytes, "parameters": sum(p.numel() for p in model.parameters())}


def write_table(out: Path) -> Path:
    """Write the newest outcome of every check as a table."""
    from rdo_harness.report_tables import Table

    newest = {(row["peer"], row["architecture"], _described(row["asked"])): row for row in read_rows(rows_path(out))}
    header = ["peer", "model", "asked for", "coverage", "native kB", "ours kB", "peer s", "outcome", "versions"]
    table = Table("Peers, each tried on tiny models", _NOTE, header, [_cells(row) for _, row in sorted(newest.items())])
    path = out / "tables" / "peers.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table.markdown(), encoding="utf-8")
    return path


def _cells(row: Row) -> list[str]:
    first = [row["peer"], row["architecture"], _described(row["asked"])]
    if "error" in row:
        return [*first, "", "", "", "", row["error"].strip().splitlines()[-1][:200], ""]
    sizes = [f"{row[size] / 1000:.1f}" for size in ("native_bytes", "file_bytes")]
    return [*first, f"{row['native_coverage']:.1%}", *sizes, f"{row['peer_seconds']:.1f}", "done", row["peer_versions"]]


def _described(options: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in options.items())


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
