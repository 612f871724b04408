from __future__ import annotations

import csv
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from rdo.errors import ConfigError
from rdo_harness import figures, report


def row(label: str, rate: float, loss: float, **more: Any) -> dict[str, Any]:
    base = {
        "key": f"{label}-{rate}-{more.get('seed', 0)}",
        "suite": "s",
        "suite_version": 1,
        "method": "rtn" if label == "anchor" else "backslash",
        "label": label,
        "setting": "step 0.03125",
        "task": "trec",
        "architecture": "minilm",
        "seed": 0,
        "lam": None if label == "anchor" else 0.5,
        "step": 2.0**-5,
        "relative_step": None,
        "granularity": "global",
        "sparsity_target": None,
        "metric_name": "accuracy",
        "metric": 0.95 - loss / 10,
        "cross_entropy": loss,
        "uncompressed_metric": 0.94,
        "uncompressed_cross_entropy": 0.1,
        "fixed_length_bits_per_parameter": 2 * rate,
        "exp_golomb_k0_bits_per_parameter": 1.6 * rate,
        "exp_golomb_bits_per_parameter": 1.3 * rate,
        "exp_golomb_best_k": 1,
        "huffman_bits_per_parameter": 1.1 * rate,
        "rans_bits_per_parameter": rate,
        "entropy_bits_per_parameter": 0.99 * rate,
        "file_bits_per_parameter": 1.2 * rate,
        "file_bytes": int(1e6 * rate),
        "uncompressed_bytes": 16_000_000,
        "sparsity": 0.25,
        "shape": 1.3,
        "training_seconds": 41.0,
        "peak_memory_bytes": 1.5e9,
        "train_steps": 100,
        "train_examples": 3200,
        "commit": "abc",
        "dirty": False,
        "date": "2026-11-23 10:00:00",
        "torch_version": "2.13.0",
        "python_version": "3.11.7",
        "device": "CPU",
        "threads": 2,
    }
    return {**base, **more}


def curve(label: str, factor: float, **more: Any) -> list[dict[str, Any]]:
    return [row(label, factor * rate, 0.1 + 2.0**-rate, **more) for rate in (1.0, 2.0, 3.0, 4.0, 5.0)]


ROWS = [*curve("anchor", 1.0), *curve("mine", 0.7)]


class References(HTMLParser):
    """Collects everything that a browser would fetch, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith("#"):
                self.found.append(value)


def test_the_tables_hold_the_bd_rate_and_the_smallest_size(tmp_path: Path) -> None:
    built = report.build(ROWS, tmp_path, "s")
    [summary] = built.summaries
    mine = dict(zip(summary.header, summary.rows[1], strict=True))
    assert summary.rows[0][0] == "anchor"
    assert mine["BD-rate"] == "-30.0 %"
    assert mine["BD-rate, file"] == "-30.0 %"
    # At most a point below 0.94: 0.95 - 0.01 - 2^-rate / 10 >= 0.93 needs a rate of 4 of the anchor's scale.
    assert mine["accuracy kept: bits/param"] == f"{1.2 * 0.7 * 4:.2f}"
    assert mine["MB"] == "2.80"
    assert mine["of bf16"] == "17.5%"
    markdown = (tmp_path / "tables" / "s.md").read_text()
    assert "-30.0 %" in markdown
    assert "nan" not in markdown.lower()
    with (tmp_path / "tables" / "s.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(ROWS)


def test_the_papers_presentation_takes_fixed_length_as_the_whole(tmp_path: Path) -> None:
    report.build(ROWS, tmp_path, "s")
    table = (tmp_path / "tables" / "s.md").read_text().split("## The paper's presentation")[1]
    assert table.count("| 80%") == 2


def test_seeds_are_compared_one_by_one(tmp_path: Path) -> None:
    rows = [
        r
        for seed, factor in enumerate((0.6, 0.7, 0.8))
        for r in (*curve("anchor", 1.0, seed=seed), *curve("mine", factor, seed=seed))
    ]
    built = report.build(rows, tmp_path, "s")
    mine = dict(zip(built.summaries[0].header, built.summaries[0].rows[1], strict=True))
    assert mine["BD-rate"] == "-30.0 +- 24.8 %"  # t(0.975, 2) * 10 / sqrt(3)
    assert mine["seeds"] == "3"


def test_what_the_subject_saves_is_told_against_each_of_the_others(tmp_path: Path) -> None:
    # The subject is measured with two seeds more than a third method, which shares the first seed only.
    rows = [*ROWS, *curve("half", 0.5), *curve("elsewhere", 1.0, seed=7)]
    rows += [r for seed in (1, 2) for r in (*curve("anchor", 0.7, seed=seed), *curve("mine", 0.7, seed=seed))]
    report.build(rows, tmp_path, "s", subject="mine")
    table = (tmp_path / "tables" / "s.md").read_text().split("## What mine saves: minilm on trec")[1].split("##")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if "|" in line]
    lines = {row[1]: row[2:-1] for row in cells}
    assert lines["anchor"] == ["3", "-10.0 +- 43.0 %", "100%"]  # -30, 0 and 0: t(0.975, 2) * 17.32 / sqrt(3)
    assert lines["half"] == ["1", "+40.0 %", "100%"]
    assert lines["elsewhere"] == ["0", "no seed in common", ""]
    assert "mine" not in lines


def test_what_is_taken_away_from_the_subject_is_told_apart(tmp_path: Path) -> None:
    rows = [*ROWS, *curve("without", 1.4), *curve("anchor", 1.0, architecture="llama")]
    built = report.build(rows, tmp_path, "s", subject="mine", ablations=["without"])
    markdown = (tmp_path / "tables" / "s.md").read_text()
    saves = markdown.split("## What mine saves: minilm on trec")[1].split("##")[0]
    worth = markdown.split("## Ingredients of mine: minilm on trec")[1].split("##")[0]
    assert "without" not in saves.split("|", 1)[1]
    assert [line.split("|")[1].strip() for line in worth.splitlines() if "%" in line and "|" in line] == ["without"]
    assert "-50.0 %" in worth
    assert "Ingredients of mine: llama" not in markdown
    assert [path.name for path, _ in built.figures[:2]] == ["s.png", "s-ablations.png"]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    main, apart, *_ = figures.draw(frame, ["anchor", "mine", "without"], [], subject="mine", ablations=["without"])
    names = [{line.get_label() for line in drawn.figure.axes[0].get_lines()} for drawn in (main, apart)]
    assert {"anchor", "mine"} <= names[0]
    assert "without" not in names[0]
    assert {"mine", "without", "uncompressed, normal training"} <= names[1]
    assert "anchor" not in names[1]
    assert len(apart.figure.axes) == 2, "of the model that has no ablation nothing is shown"


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["without"], [{"without"}]),
        (["without", "more"], [{"without", "more"}]),
        (["without", "mine"], [{"mine"}, {"mine", "without"}]),
        (["mine", "without"], [{"mine"}, {"mine", "without"}]),
    ],
)
def test_a_part_of_a_suite_has_figures_too(tmp_path: Path, labels: list[str], shown: list[set[str]]) -> None:
    rows = [point for label in labels for point in curve(label, 1.0)]
    report.build(rows, tmp_path, "s", subject="mine", ablations=["without", "more"])
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    drawn = figures.draw(frame, labels, [], subject="mine", ablations=["without", "more"])
    names = {"mine", "without", "more"}
    assert [{line.get_label() for line in each.figure.axes[0].get_lines()} & names for each in drawn] == shown


def test_architectures_are_kept_apart(tmp_path: Path) -> None:
    rows = [*ROWS, *curve("anchor", 1.0, architecture="llama"), *curve("mine", 0.5, architecture="llama")]
    built = report.build(rows, tmp_path, "s")
    assert [table.rows[1][3] for table in built.summaries] == ["-30.0 %", "-50.0 %"]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    figure = figures.rate_distortion(frame, ["anchor", "mine"])
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert {"anchor", "mine"} <= {line.get_label() for line in axes.get_lines()}


def test_a_method_of_one_seed_is_drawn_at_the_level_of_all() -> None:
    """The third seed's models are all worse by 0.3 nats and 0.06 of accuracy; the second method has that seed alone."""
    rows = [*curve("anchor", 1.0), *curve("anchor", 1.0, seed=1)]
    for point in (*curve("anchor", 1.0, seed=2), *curve("mine", 0.7, seed=2)):
        # What training to a size ends at is told of itself, not of normal training.
        normal = {"uncompressed_cross_entropy": 0.4 if point["label"] == "anchor" else point["cross_entropy"] + 0.3}
        losses = {"cross_entropy": point["cross_entropy"] + 0.3, "metric": point["metric"] - 0.06}
        rows.append({**point, **normal, **losses, "uncompressed_metric": 0.88})
    rows = [{**point, "setting": str(point["file_bytes"])} for point in rows]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    figure = figures.rate_distortion(frame, ["anchor", "mine"])
    for axes, column, lift in zip(figure.axes, ("cross_entropy", "metric"), (0.1, -0.02), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        wanted = [point[column] + lift for point in curve("anchor", 1.0)]
        assert list(lines["anchor"]) == pytest.approx(wanted)
        assert list(lines["mine"]) == pytest.approx(wanted), "the same losses at fewer bits"
        assert lines["uncompressed, normal training"][0] == pytest.approx(rows[0][f"uncompressed_{column}"] + lift)


def test_destroyed_models_are_cut_off_the_figure_and_counted() -> None:
    rows = [*ROWS, row("mine", 0.2, 50.0)]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    figure = figures.rate_distortion(frame, ["anchor", "mine"])
    assert figure.axes[0].get_ylim()[1] < 1.0
    hidden = sum(r["cross_entropy"] > 2 * min(q["cross_entropy"] for q in rows) for r in rows)
    [note] = figure.axes[0].texts
    assert f"{hidden} points are not shown" in note.get_text()
    figure.draw_without_rendering()
    assert note.get_window_extent().y0 >= figure.axes[0].get_window_extent().y1, "it would hide points"
    assert note.get_window_extent().y1 <= figure.axes[0].title.get_window_extent().y0


def test_a_curve_without_a_figure_says_why(tmp_path: Path) -> None:
    built = report.build([*curve("anchor", 1.0), *curve("mine", 0.7)[:3]], tmp_path, "s")
    assert built.summaries[0].rows[1][3] == "its front has 3 of 4 points"


def test_the_page_stands_alone_and_escapes_labels(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    report.build([*curve("anchor", 1.0), *curve(hostile, 0.7)], tmp_path, "s")
    page = (tmp_path / "s.html").read_text()
    parser = References()
    parser.feed(page)
    assert parser.found == []
    assert "script" not in parser.tags
    assert "svg" in parser.tags
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_failures_and_provenance_are_told(tmp_path: Path) -> None:
    rows = [*ROWS, {"key": "x", "label": "mine", "seed": 0, "error": "OSError: disk full"}]
    rows[0] = {**rows[0], "commit": "other", "dirty": True}
    built = report.build(rows, tmp_path, "s")
    assert built.failures == ["mine, seed 0: OSError: disk full"]
    notes = " ".join(built.notes)
    for words in ("1 seed (0)", "different commits", "uncommitted changes", "torch 2.13.0", "100 steps"):
        assert words in notes
    only_failures = report.build(rows[-1:], tmp_path / "failed", "s")
    assert only_failures.summaries == []
    assert "disk full" in (tmp_path / "failed" / "s.html").read_text()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_summary_fits_a_terminal(tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    built = report.build(ROWS, tmp_path, "s")
    console = Console(width=width, record=True)
    built.print_summary(console)
    text = console.export_text()
    table = text[text.index("Summary") : text.index("BD-rate: mean")].splitlines()
    assert max(map(len, table)) <= width
    for row in built.summaries[0].rows:
        (line,) = (line for line in table if line.startswith(f"{row[0]} "))
        assert row[5] in line, "the overlap is whole"
    assert "-30.0 %" in text


def test_parquet_is_written_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ConfigError, match=r"pip install 'backslash-rdo\[parquet\]'"):
            report.build(ROWS, tmp_path, "s", parquet=True)
    pytest.importorskip("pyarrow", reason="of the extra `test`")
    built = report.build([{**row, "item_nats": "AAAA"} for row in ROWS], tmp_path, "s", parquet=True)
    assert tmp_path / "tables" / "s.parquet" in built.files
    read = pd.read_parquet(tmp_path / "tables" / "s.parquet")
    assert "item_nats" not in read
    assert list(read["rans_bits_per_parameter"]) == [row["rans_bits_per_parameter"] for row in ROWS]
    assert read["lam"].isna().sum() == 5


def test_sizes_as_coded_take_the_place_of_rans_where_another_coder_was_used(tmp_path: Path) -> None:
    before = row("anchor", 2.0, 0.3)
    both = [
        row("mine", rate, 0.1 + 2.0**-rate, rans_bits_per_parameter=None, coded_bits_per_parameter=0.8 * rate)
        for rate in (1.0, 2.0)
    ]
    report.build([before, *both], tmp_path, "s")
    text = (tmp_path / "tables" / "s.md").read_text()
    (header,) = [line for line in text.splitlines() if line.startswith("| method") and "EG best k (bits)" in line]
    titles = [cell.strip() for cell in header.split("|")]
    assert "rANS (bits)" not in titles
    place = titles.index("as coded (bits)")
    points = [
        line.split("|") for line in text.splitlines() if "step 0.03125" in line and line.count("|") == header.count("|")
    ]
    assert [cells[place].strip() for cells in points] == ["2.000", "0.800", "1.600"]
    assert "nan" not in text
    report.build([before], tmp_path, "rans")
    assert "as coded" not in (tmp_path / "tables" / "rans.md").read_text().lower()
