"""One row per trained model: how its training went and what its weights are like. Figures need it, points do not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rdo_harness import training
from rdo_harness.cells import Cell, identity
from rdo_harness.observation import rounded
from rdo_harness.results import Row, append_row, read_rows
from rdo_harness.run import work_path

_SHARED = (
    *("task", "architecture", "seed", "lam", "lam_units", "apply", "eps", "regulariser_p"),
    *("bits", "loss_increase", "train_steps"),
)
"""Columns of a point that are those of its training."""


def trainings_path(out: Path) -> Path:
    """Where the rows of all suites' trainings are."""
    return out / "runs" / "trainings.jsonl"


def collect(cells: Iterable[Cell], out: Path) -> list[Row]:
    """The rows of these cells' trainings, each once, in their order.

    A training that has no row yet gets one now, from the trained model in the working folder; without that it is left
    out. The file may be shared by runs: a row that two of them write is equal, and the last one counts.
    """
    path = trainings_path(out)
    found = {row["training_key"]: row for row in read_rows(path)}
    rows = {}
    for cell in cells:
        key = cell.training_key
        if key in rows:
            continue
        if key not in found:
            model = training.stored(key, work_path(out))
            if model is None:
                continue
            found[key] = _observed(cell, model)
            append_row(path, found[key])
        rows[key] = found[key]
    return list(rows.values())


def _observed(cell: Cell, source: training.Trained) -> Row:
    model = training.load_trained(cell.architecture.build(cell.seed, cell.part.task), source)
    shared = identity(cell)
    return {
        "training_key": cell.training_key,
        **{column: shared[column] for column in _SHARED if column in shared},
        "shape": source.shape,
        "history": source.history,
        "histogram": source.histogram,
        **rounded(model, cell.architecture),
    }
