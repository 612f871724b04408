"""Runs a suite: every operating point of every method, each a row; what is finished is never run again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rdo_harness import training
from rdo_harness.cells import Cell, cells, failed, finish, relabelled, trained
from rdo_harness.results import Row, append_row, read_rows
from rdo_harness.suite import Suite
from rdo_harness.workers import Job, Workers

Finished = Iterator[tuple[Row, float]]
"""Rows as they are ready, each with the seconds that it took."""

_POLL_SECONDS = 0.05


class Listener(Protocol):
    """Hears what a run is doing."""

    def plan(self, trainings: int, points: int, finished: int) -> None:
        """Called once, with the trainings and operating points to do and the points found finished."""

    def training(self, cell: Cell, number: int) -> training.Progress:
        """A training begins; the returned function hears of its steps, unless another process trains."""
        ...

    def trained(self, seconds: float) -> None:
        """The training ended."""

    def point(self, cell: Cell) -> None:
        """An operating point begins."""

    def finished(self, row: Row, seconds: float) -> None:
        """An operating point has its row, or its error."""


def rows_path(out: Path, suite: Suite) -> Path:
    """Where a suite's rows are."""
    return out / "runs" / f"{suite.name}.jsonl"


def work_path(out: Path) -> Path:
    """Where trained models and single results are, shared by all suites: safe to delete, costly to make again."""
    return out / "work"


def current_rows(suite: Suite, out: Path) -> list[Row]:
    """Finished rows that belong to the suite as it is now, in its order; the newest where one was run twice."""
    found = {row.get("key"): row for row in read_rows(rows_path(out, suite))}
    return [relabelled(found[cell.key], cell) for cell in cells(suite) if cell.key in found]


@dataclass(frozen=True)
class Group:
    """The cells that share one training.

    Attributes:
        cells: all of them.
        left: those that have no row in the suite's file yet.
        measured: how many of these another suite measured already.
        untrained: whether the model must be trained for them.
    """

    cells: list[Cell]
    left: list[Cell]
    measured: int
    untrained: bool


def groups(suite: Suite, out: Path) -> list[Group]:
    """All cells of a suite by the training that they share, and what is left of them to do."""
    work = work_path(out)
    done = {row["key"] for row in current_rows(suite, out) if "error" not in row}
    by_training: dict[str, list[Cell]] = {}
    for cell in cells(suite):
        by_training.setdefault(cell.training_key, []).append(cell)
    found = []
    for key, group in by_training.items():
        left = [cell for cell in group if cell.key not in done]
        measured = sum((work / "rows" / f"{cell.key}.json").exists() for cell in left)
        untrained = measured < len(left) and not (work / f"{key}.safetensors").exists()
        found.append(Group(group, left, measured, untrained))
    return found


def run(suite: Suite, out: Path, listener: Listener, workers: Workers | None = None) -> list[Row]:
    """Run what is not finished yet and return all rows of the suite.

    A point that fails is recorded as a row with an ``error`` and tried again by the next run; if its training fails,
    so do all points of that training, and the others go on.

    Args:
        workers: where to run; this process, one after the other, if None.
    """
    from filelock import FileLock

    work = work_path(out)
    found = groups(suite, out)
    todo = [(group.left, group.untrained) for group in found if group.left]
    points = sum(len(left) for left, _ in todo)
    finished = sum(len(group.cells) for group in found) - points
    listener.plan(sum(untrained for _, untrained in todo), points, finished)
    results = _here(todo, work, listener) if workers is None else _elsewhere(todo, work, listener, workers)
    (work / "locks").mkdir(parents=True, exist_ok=True)
    for row, seconds in results:
        with FileLock(work / "locks" / f"{suite.name}.rows"):
            append_row(rows_path(out, suite), row)
        listener.finished(row, seconds)
    return current_rows(suite, out)


def _here(todo: list[tuple[list[Cell], bool]], work: Path, listener: Listener) -> Finished:
    for number, (group, untrained) in enumerate(todo, 1):
        if untrained:
            started = time.perf_counter()
            progress = listener.training(group[0], number)
            try:
                trained(group[0], work, progress)
            except Exception as error:
                yield from ((failed(cell, error), 0.0) for cell in group)
                continue
            finally:
                listener.trained(time.perf_counter() - started)
        for cell in group:
            listener.point(cell)
            started = time.perf_counter()
            row = finish(cell, work)
            yield row, time.perf_counter() - started


@dataclass
class _Running:
    """A training with the points that wait for it, or a point (whose ``waiting`` is empty), at a worker."""

    cell: Cell
    waiting: list[Cell]
    job: Job | None = None
    started: float = 0.0
    tried: int = 0


def _elsewhere(todo: list[tuple[list[Cell], bool]], work: Path, listener: Listener, workers: Workers) -> Finished:
    """Everything at workers, in the order of the suite; the points of a training as soon as it has ended."""
    queue: deque[_Running] = deque()
    for group, untrained in todo:
        queue.extend([_Running(group[0], group)] if untrained else [_Running(cell, []) for cell in group])
    running: list[_Running] = []
    while queue or running:
        while queue and len(running) < workers.slots:
            task = queue.popleft()
            if task.waiting and not task.tried:
                listener.training(task.cell, 0)
            task.tried += 1
            task.started = time.perf_counter()
            task.job = workers.submit(trained if task.waiting else finish, task.cell, work)
            running.append(task)
        ended = [task for task in running if task.job is not None and task.job.done()]
        if not ended:
            time.sleep(_POLL_SECONDS)
        for task in ended:
            running.remove(task)
            seconds = time.perf_counter() - task.started
            try:
                result = task.job.result()  # type: ignore[union-attr]
            except BrokenExecutor as error:  # a worker died, of this or of another task: once more, then it is an error
                if task.tried < 2:
                    queue.appendleft(task)
                    continue
                result = error
            except Exception as error:
                result = error
            if task.waiting:
                listener.trained(seconds)
            if isinstance(result, Exception):
                yield from ((failed(cell, result), seconds) for cell in task.waiting or [task.cell])
            elif task.waiting:
                queue.extendleft(_Running(cell, []) for cell in reversed(task.waiting))
            else:
                yield result, seconds
