"""What a run would train, what of it is done, and about how long the rest takes by earlier rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rdo_harness.cells import Cell
from rdo_harness.results import read_rows
from rdo_harness.run import groups
from rdo_harness.suite import Suite

COLUMNS = (
    "architecture",
    "task",
    "method",
    "lambda or size",
    "seeds",
    "steps",
    "trained",
    "points done",
    "minutes left",
    "from",
)


@dataclass(frozen=True)
class PlannedTraining:
    """One training that several operating points share.

    Attributes:
        cell: one of the points.
        points: how many there are.
        done: how many are finished, of this suite or of another that shares them.
        trained: whether nothing is left to train.
        seconds: about what the training takes; None where nothing tells its length.
        basis: what tells it.
    """

    cell: Cell
    points: int
    done: int
    trained: bool
    seconds: float | None
    basis: str


def plan(suite: Suite, out: Path) -> list[PlannedTraining]:
    """The trainings of a suite, finished or not; times by the seconds per example of all rows in ``out``."""
    seconds_of: dict[tuple[str, str], list[float]] = {}
    for path in sorted((out / "runs").glob("*.jsonl")):
        for row in read_rows(path):
            if "training_seconds" in row and row.get("train_examples"):
                key = (str(row["architecture"]), str(row["task"]))
                seconds_of.setdefault(key, []).append(row["training_seconds"] / row["train_examples"])
    planned = []
    for group in groups(suite, out):
        first, points = group.cells[0], len(group.cells)
        budget = first.part.budget
        measured = seconds_of.get((first.architecture.title, first.part.task.name))
        seconds, basis = None, "unknown"
        if measured:
            seconds, basis = median(measured) * budget.steps * budget.batch_size, "earlier rows"
        elif first.part.seconds_per_step is not None:
            seconds, basis = first.part.seconds_per_step * budget.steps, "a guess in the suite"
        done = points - len(group.left) + group.measured
        planned.append(PlannedTraining(first, points, done, not group.untrained, seconds, basis))
    return planned


def lines(trainings: Sequence[PlannedTraining]) -> list[list[Any]]:
    """A table with :data:`COLUMNS`: trainings that differ only in lambda (or size) and seed share a line."""
    alike: dict[tuple[Any, ...], list[PlannedTraining]] = {}
    for training in trainings:
        cell = training.cell
        name = getattr(cell.architecture, "path", "") or cell.architecture.title
        method = "normal training" if cell.point.rate is None else cell.method.label
        key = (name, cell.part.task.name, method, cell.part.budget.steps, training.basis)
        alike.setdefault(key, []).append(training)
    return [_line(key, together) for key, together in alike.items()]


def _line(key: tuple[Any, ...], together: list[PlannedTraining]) -> list[Any]:
    name, task, method, steps, basis = key
    rates = [training.cell.point.rate for training in together]
    asked = dict.fromkeys(rate.describe() for rate in rates if rate is not None)
    settings = ", ".join(text.removeprefix("lambda ").removesuffix(" bits") for text in asked)
    settings += " bits" if any(text.endswith(" bits") for text in asked) else ""
    seeds = dict.fromkeys(str(training.cell.seed) for training in together)
    left = [training for training in together if not training.trained]
    known = [training.seconds for training in left if training.seconds is not None]
    minutes = f"{sum(known) / 60:.1f}" if len(known) == len(left) else "?"
    points, done = (sum(getattr(training, count) for training in together) for count in ("points", "done"))
    trained = f"{len(together) - len(left)}/{len(together)}"
    of_points = f"{done}/{points}"
    return [name, task, method, settings, ", ".join(seeds), steps, trained, of_points, minutes, basis]
