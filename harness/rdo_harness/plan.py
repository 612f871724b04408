"""What a run would train, and about how long that takes: by earlier rows where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rdo_harness.cells import Cell, cells
from rdo_harness.results import read_rows
from rdo_harness.suite import Suite


@dataclass(frozen=True)
class PlannedTraining:
    """One training that several operating points share; ``seconds`` is None where nothing tells its length."""

    cell: Cell
    points: int
    seconds: float | None
    basis: str

    def cells(self) -> list[Any]:
        """The columns of a table: see ``rdo run --dry-run``."""
        cell = self.cell
        minutes = None if self.seconds is None else f"{self.seconds / 60:.1f}"
        lam = None if cell.point.rate is None else cell.point.rate.lam
        name = getattr(cell.architecture, "path", "") or cell.architecture.name
        what = [name, cell.part.task.name, cell.method.label if lam is not None else "normal training"]
        return [*what, lam, cell.seed, cell.part.budget.steps, self.points, minutes, self.basis]


def plan(suite: Suite, out: Path) -> list[PlannedTraining]:
    """The trainings of a suite, finished or not; times by the seconds per example of all rows in ``out``."""
    seconds_of: dict[tuple[str, str], list[float]] = {}
    for path in sorted((out / "runs").glob("*.jsonl")):
        for row in read_rows(path):
            if "training_seconds" in row and row.get("train_examples"):
                key = (str(row["architecture"]), str(row["task"]))
                seconds_of.setdefault(key, []).append(row["training_seconds"] / row["train_examples"])
    groups: dict[str, list[Cell]] = {}
    for cell in cells(suite):
        groups.setdefault(cell.training_key, []).append(cell)
    planned = []
    for first, *others in groups.values():
        budget = first.part.budget
        measured = seconds_of.get((first.architecture.name, first.part.task.name))
        seconds, basis = None, "unknown"
        if measured:
            seconds, basis = median(measured) * budget.steps * budget.batch_size, "earlier rows"
        elif first.part.seconds_per_step is not None:
            seconds, basis = first.part.seconds_per_step * budget.steps, "a guess in the suite"
        planned.append(PlannedTraining(first, 1 + len(others), seconds, basis))
    return planned
