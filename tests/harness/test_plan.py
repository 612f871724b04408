"""What a dry run says is done and what is left."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rdo_harness.plan import lines, plan
from rdo_harness.progress import ProgressDisplay
from rdo_harness.results import append_row, read_rows
from rdo_harness.run import rows_path, run
from rdo_harness.suite import Suite


def test_a_dry_run_says_what_is_done(tiny_suite: Suite, tmp_path: Path) -> None:
    run(tiny_suite.restricted(["rtn", "pruning"], None), tmp_path, ProgressDisplay(Console(quiet=True)))
    [row] = [row for row in read_rows(rows_path(tmp_path, tiny_suite)) if row["label"] == "pruning"][:1]
    rows_path(tmp_path, tiny_suite).unlink()
    append_row(rows_path(tmp_path, tiny_suite), row)
    (tmp_path / "work" / f"{row['training_key']}.safetensors").unlink()
    normal, *ours = plan(tiny_suite.restricted(None, 2), tmp_path)
    assert (normal.points, normal.done, normal.trained) == (6, 6, True), "the others are measured in work/rows"
    assert [(training.points, training.done, training.trained) for training in ours[:2]] == [(2, 0, False)] * 2
    for path in (tmp_path / "work" / "rows").iterdir():
        path.unlink()
    normal, *_ = again = plan(tiny_suite.restricted(None, 2), tmp_path)
    assert (normal.done, normal.trained) == (1, False), "the model is gone, and five points need it"
    first, second = lines(again)
    assert [first[i] for i in (2, 4, 6, 7)] == ["normal training", "0, 1", "0/2", "1/12"]
    assert [second[i] for i in (2, 3, 4, 6, 7)] == ["backslash", "0.01, 0.1", "0, 1", "0/4", "0/8"]
