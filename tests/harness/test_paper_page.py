"""`rdo report paper`: every suite of the paper from the rows of few, and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rdo_harness import cli
from rdo_harness.cells import cells, identity
from rdo_harness.cli_report import finished_rows
from rdo_harness.paper_page import _time
from rdo_harness.results import append_row, read_rows
from rdo_harness.run import rows_path
from rdo_harness.suite import load_suite, scales_of
from tests.harness.test_claims import measured

MORE = {
    "validation_metric": 0.9,
    "validation_items": 200,
    "parameters": 10**6,
    "compress_seconds": 100.0,
    "decompress_seconds": 20.0,
    "evaluate_seconds": 160.0,
}


def pretended(suite_name: str) -> list[dict[str, Any]]:
    """A row of made-up numbers for every point of a suite."""
    rows = []
    for cell in cells(load_suite(suite_name)):
        row = measured("", 5.0 if cell.point.rate is None else 2.0, 360, **MORE)
        rows.append({**row, **identity(cell)})
    return rows


def test_suites_that_show_the_same_points_share_their_rows(tmp_path: Path) -> None:
    table, figure = load_suite("paper-table4"), load_suite("paper-fig1")
    rows = pretended("paper-table4")
    for row in rows:
        append_row(rows_path(tmp_path, table), row)
    append_row(rows_path(tmp_path, figure), {**rows[0], "suite": figure.name, "error": "OSError: disk full"})
    found = finished_rows(figure, tmp_path)
    assert sorted(row["key"] for row in found) == sorted(row["key"] for row in rows)
    labels = [row["label"] for row in found]
    assert labels == sorted(labels, key=[method.label for method in figure.parts[0].methods].index)
    assert {row["suite"] for row in found} == {"paper-fig1-small"}
    assert not any("error" in row for row in found), "another suite measured it"
    assert finished_rows(load_suite("paper-fig8"), tmp_path) == []


def test_other_suites_lend_no_seeds_that_a_suite_was_not_run_with(tmp_path: Path) -> None:
    """Else the mean of one method over three seeds would be compared with one seed of another."""
    table, figure = load_suite("paper-table4"), load_suite("paper-fig1")
    rows = [{**identity(cell), "value": cell.seed} for cell in cells(table.restricted(None, 2))]
    for row in rows:
        append_row(rows_path(tmp_path, table), row)
    assert {row["seed"] for row in finished_rows(figure, tmp_path)} == {0, 1}
    own = next(row for row in rows if row["seed"] == 1)
    append_row(rows_path(tmp_path, figure), {**own, "suite": figure.name})
    assert {row["seed"] for row in finished_rows(figure, tmp_path)} == {1}


def test_scales_of_a_suite() -> None:
    assert scales_of("paper-fig2") == ["small", "medium", "full"]
    assert scales_of("paper-questions") == ["small"]
    assert scales_of("quickstart") == []


def test_the_time_of_all_is_that_of_the_rows() -> None:
    rows = [
        {**measured("a", 2.0, 360, **MORE), "key": f"{seconds}-{point}", "training_key": f"{seconds}"}
        | {"training_seconds": seconds}
        for seconds in (3600.0, 7200.0)
        for point in range(5)
    ]
    slow = {**rows[0], "evaluate_seconds": 160.0 + 2400.0}
    told = _time([slow, *rows[1:], slow])
    # A point takes 100 + 20 + 160 * (1 + 200 / 400) seconds; one takes an hour more.
    assert "the 2 trainings took 3.0 h and the 10 points 2.0 h (threads: 2)" in told
    assert "2.0 h and 1.0 h if all had been as quick" in told


def test_the_page_says_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "results", tmp_path / "docs" / "paper.md"
    page.parent.mkdir()
    assert cli.main(["report", "paper", "--out", str(out)]) == 2
    assert "first: rdo run paper-table4" in capsys.readouterr().err
    assert cli.main(["report", "quickstart", "--page", str(page)]) == 2
    assert "--page is for" in capsys.readouterr().err
    for row in pretended("paper-table6")[:3]:
        append_row(rows_path(out, load_suite("paper-table6")), row)
    assert cli.main(["report", "paper", "--out", str(out), "--page", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "paper-table6-small: 3 of 6 points" in printed
    text = page.read_text()
    assert "paper-table6-small (3 of 6)" in text
    assert "rdo run paper-table6 --scale small --out results\n" in text
    assert "rdo run paper-fig7" not in text, "it was not run; it only shares points"
    assert "- paper-fig8-small: Figure 8" in text
    assert "BERT 110M (paper)" in text
    assert "| the shape that follows the weights beats L0.5 " in text
    assert "](../results/figures/paper-table6-small.png)" in text
    assert (out / "figures" / "paper-table6-small.png").exists()
    assert read_rows(rows_path(out, load_suite("paper-table6")))[0]["label"] == "normal + RTN"
