"""Compares coders on the same symbols in the same run: bytes, and seconds of arms that take turns."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rdo.quantizers import Quantizer
from rdo_harness.coder_peers.base import PEERS, Matrix, Peer, Trip, entropy_bytes, part_of
from rdo_harness.coder_points import Checkpoint, Target, quantised
from rdo_harness.resources import provenance
from rdo_harness.results import Row, append_row, read_rows
from rdo_harness.training import digest

VERSION = 1
"""Of what a row means; part of its key."""
WARM_UP_SYMBOLS = 1 << 18
Report = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        rounds: turns of every arm, at most; seconds are medians over them.
        seconds: an arm that has taken this long at a point gets no further turn.
        most_symbols: symbols coded at a point, the same share of every tensor; None: all.
        most_slow_symbols: the same for compressors that take minutes for a model.
        speed_only: report no sizes, for weights whose sizes say nothing, such as those rounded before.
    """

    rounds: int = 3
    seconds: float = 1.0
    most_symbols: int | None = None
    most_slow_symbols: int = 1 << 20
    speed_only: bool = False

    def part(self, slow: bool, matrices: Sequence[Matrix]) -> list[Matrix]:
        """What an arm is given."""
        limits = [limit for limit in (self.most_symbols, self.most_slow_symbols if slow else None) if limit]
        return part_of(matrices, min(limits, default=None))


@dataclass(frozen=True)
class Cell:
    """One arm at one operating point; its key is a hash of all that determines its row."""

    checkpoint: str
    sha256: str
    target: str
    quantizer: Quantizer
    arm: Peer
    effort: Effort
    threads: int

    @property
    def key(self) -> str:
        effort = self.effort
        sizes = [effort.most_symbols, effort.most_slow_symbols if self.arm.slow else None, effort.speed_only]
        parts = [VERSION, self.sha256, self.quantizer.config(), self.arm.config(), self.arm.version(), sizes]
        return digest({"checkpoint": self.checkpoint, "parts": parts, "threads": self.threads})


def rows_path(out: Path) -> Path:
    """Where the rows are."""
    return out / "runs" / "coders.jsonl"


def available_arms(report: Report) -> list[Peer]:
    """Every arm whose tool is installed; the others are reported with the command that installs them."""
    arms: list[Peer] = []
    for name in PEERS.names():
        peer = PEERS.get(name)
        reason = peer.missing()
        if reason is None:
            arms += peer.arms()
        else:
            report(f"not compared: {reason}")
    return arms


def compare(
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Target],
    arms: Sequence[Peer],
    effort: Effort,
    out: Path,
    report: Report,
) -> list[Row]:
    """Measure what has no row yet, point by point, and return the rows of all that was asked for.

    Rows are written when their point is complete. An arm that fails gets a row with an ``error`` and no numbers, and is
    tried again by the next run.
    """
    asked: list[Row] = []
    threads = torch.get_num_threads()
    for checkpoint in checkpoints:
        sha256, weights = checkpoint.sha256(), checkpoint.weights()
        for target in targets:
            quantizer = target.find(weights)
            cells = [Cell(checkpoint.name, sha256, target.label, quantizer, arm, effort, threads) for arm in arms]
            done = {row["key"]: row for row in read_rows(rows_path(out)) if "error" not in row}
            todo = [cell for cell in cells if cell.key not in done]
            where = f"{checkpoint.name}, {target.label} ({quantizer.config()})"
            report(f"{where}: {len(todo)} arms to measure, {len(cells) - len(todo)} found measured")
            for row in _measure(todo, quantised(weights, quantizer), effort) if todo else ():
                append_row(rows_path(out), row)
                done[row["key"]] = row
                if "error" in row:
                    report(f"failed: {row['coder']}: {row['error']}")
            asked += [done[cell.key] for cell in cells]
    return asked


def _measure(cells: Sequence[Cell], matrices: list[Matrix], effort: Effort) -> Iterator[Row]:
    """The rows of one point; every arm has its turn in every round."""
    parts = {slow: _Part.of(effort.part(slow, matrices)) for slow in {cell.arm.slow for cell in cells}}
    turns = [_Turns(cell.arm, parts[cell.arm.slow], cell.threads) for cell in cells]
    for number in range(effort.rounds):
        for turn in turns:
            if number == 0 or turn.spent < effort.seconds:
                turn.take()
    for cell, turn in zip(cells, turns, strict=True):
        yield {**_identity(cell), **turn.row(effort.speed_only), **provenance()}


@dataclass(frozen=True)
class _Part:
    """Matrices or parts of them, and what an ideal static coder would need for them."""

    matrices: list[Matrix]
    entropy_bytes: float

    @classmethod
    def of(cls, matrices: list[Matrix]) -> _Part:
        return cls(matrices, entropy_bytes(matrices))


class _Turns:
    """What an arm needed in its turns so far, by number of threads."""

    def __init__(self, arm: Peer, part: _Part, threads: int) -> None:
        self.arm = arm
        self.part = part
        self.packing = arm.packings[0]
        self.trips: dict[int, list[Trip]] = {1: []}
        if arm.threaded and threads > 1:
            self.trips[threads] = []
        self.spent = 0.0
        self.error: str | None = None

    def take(self) -> None:
        """A round trip with each number of threads; the first time with each packing, of which the smallest is kept."""
        if self.error is not None:
            return
        try:
            if not self.trips[1]:
                self._choose_packing()
            else:
                self.trips[1].append(self._trip(self.packing, 1))
            for threads, trips in self.trips.items():
                if threads > 1:
                    trips.append(self._trip(self.packing, threads))
        except Exception as error:  # one arm must not take the others with it; the row keeps the reason
            self.error = f"{type(error).__name__}: {error}"

    def _choose_packing(self) -> None:
        if self.arm.warms_up:
            small = part_of(self.part.matrices, WARM_UP_SYMBOLS)
            for threads in self.trips:
                self.arm.trip(small, self.packing, threads)
        tried = [(self._trip(packing, 1), packing) for packing in self.arm.packings]
        best, self.packing = min(tried, key=lambda pair: pair[0].nbytes)
        self.trips[1].append(best)

    def _trip(self, packing: str, threads: int) -> Trip:
        trip = self.arm.trip(self.part.matrices, packing, threads)
        self.spent += trip.encode.wall + trip.decode.wall
        return trip

    def row(self, speed_only: bool) -> Row:
        """Sizes and median seconds; the load says how much the wall clock can be trusted."""
        symbols = sum(matrix.symbols.size for matrix in self.part.matrices)
        row: Row = {"symbols": symbols, "tensors": len(self.part.matrices), "load_average": _load()}
        if self.error is not None:
            return {**row, "error": self.error}
        first = self.trips[1][0]
        row |= {"form": first.form, "rounds": len(self.trips[1]), "entropy_bytes": None, "bytes": None}
        if not speed_only:
            row |= {"entropy_bytes": self.part.entropy_bytes, "bytes": first.nbytes}
        row["all_threads"] = max(self.trips) if len(self.trips) > 1 else None
        for name, trips in (("one_thread", self.trips[1]), ("all_threads", self.trips[max(self.trips)])):
            for direction in ("encode", "decode"):
                for clock in ("wall", "cpu"):
                    seconds = statistics.median(getattr(getattr(trip, direction), clock) for trip in trips)
                    missing = name == "all_threads" and len(self.trips) == 1
                    row[f"{name}_{direction}_{clock}_seconds"] = None if missing else seconds
        return row


def _identity(cell: Cell) -> dict[str, Any]:
    quantizer = cell.quantizer.config()
    return {
        "key": cell.key,
        "checkpoint": cell.checkpoint,
        "sha256": cell.sha256,
        "target": cell.target,
        "step": quantizer.get("step"),
        "relative_step": quantizer.get("ratio"),
        "coder": cell.arm.label,
        "peer": cell.arm.name,
        "settings": json.dumps(cell.arm.config()),
        "version": cell.arm.version(),
        "footing": cell.arm.footing,
        "slow": cell.arm.slow,
        "speed_only": cell.effort.speed_only,
    }


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return None
