"""A report: tables, figure and one HTML page from rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rdo.errors import ConfigError
from rdo_harness import figures
from rdo_harness.metrics import ITEM_COLUMNS
from rdo_harness.paper_tables import paper_tables
from rdo_harness.report_tables import (
    Table,
    best_coder,
    operating_points,
    papers_presentation,
    saved_by,
    summary,
    taken_away,
)
from rdo_harness.results import Row

if TYPE_CHECKING:
    from rich.console import Console


_MADE_WITH = ("torch_version", "python_version", "device", "threads", "suite_version")
_NOT_ON_A_TERMINAL = ("points", "seeds", "BD-rate, file")
"""Columns of the summary that would not fit into 80 characters beside the others."""


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its SVG text and what a reader must know of it."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Report:
    """What was built and where it is."""

    summaries: list[Table]
    notes: list[str]
    failures: list[str]
    files: list[Path]
    figures: list[tuple[Path, str]]
    """The PNG of every figure and its caption, the main one first."""

    def print_summary(self, console: Console) -> None:
        """Print the summary tables, the notes and the paths of the files."""
        from rich.table import Table as RichTable
        from rich.text import Text

        for shown in self.summaries:
            columns = [number for number, name in enumerate(shown.header) if name not in _NOT_ON_A_TERMINAL]
            table = RichTable(
                title=shown.title,
                caption=shown.note,
                title_style="bold",
                title_justify="left",
                caption_justify="left",
                box=None,
                pad_edge=False,
            )
            for number in columns:
                name = shown.header[number]
                whole = name in ("method", "overlap (nats)")
                table.add_column(Text(name), justify="right" if number else "left", overflow="fold", no_wrap=whole)
            for row in shown.rows:
                table.add_row(*(Text(row[number]) for number in columns))
            console.print()
            console.print(table)
            console.print()
        for note in self.notes:
            console.print(Text(f"note: {note}"), highlight=False)
        for failure in self.failures:
            console.print(Text(f"failed: {failure}", style="red"))
        console.print(Text("written: " + ", ".join(map(str, self.files))), highlight=False, soft_wrap=True)


def build(
    rows: Sequence[Row],
    out: Path,
    suite: str,
    anchor: str | None = None,
    paper: str = "",
    trainings: Sequence[Row] = (),
    parquet: bool = False,
    subject: str = "",
    ablations: Sequence[str] = (),
) -> Report:
    """Write OUT/tables/SUITE.{md,csv}, OUT/figures/SUITE*.{svg,png} and OUT/SUITE.html.

    Args:
        rows: rows of one suite; those with an ``error`` are listed as failures.
        anchor: label that the others are compared with; the first of method ``rtn`` by default.
        paper: the table or figure of the paper that the suite repeats; its claims and numbers come first.
        trainings: rows of :mod:`rdo_harness.trainings`, for the figures that need more than points.
        parquet: write OUT/tables/SUITE.parquet too.
        subject: label of the method that the suite is about; a table says what it saves against each of the others.
        ablations: labels of the same method with something taken away, which have a table and a figure of their own.

    Raises:
        ConfigError: ``parquet`` without pyarrow.
    """
    if parquet:
        _require_pyarrow()
    failures = [f"{row.get('label')}, seed {row.get('seed')}: {row['error']}" for row in rows if "error" in row]
    frame = pd.DataFrame([row for row in rows if "error" not in row])
    tables: list[Table] = []
    pictures: list[Picture] = []
    pngs: list[tuple[Path, str]] = []
    files = [out / "tables" / f"{suite}.md", out / "tables" / f"{suite}.csv", out / f"{suite}.html"]
    summaries: list[Table] = []
    notes: list[str] = []
    (out / "tables").mkdir(parents=True, exist_ok=True)
    if len(frame):
        frame["best_coder_bits_per_parameter"] = best_coder(frame)
        labels = list(dict.fromkeys(frame["label"]))
        anchors = frame.loc[frame["method"] == "rtn", "label"]
        anchor = anchor or (anchors.iloc[0] if len(anchors) else labels[0])
        labels.sort(key=lambda label: label != anchor)
        for (task, architecture), group in frame.groupby(["task", "architecture"], sort=False):
            where = f"{architecture} on {task}"
            summaries.append(summary(group, labels, anchor, where))
            tables.append(summaries[-1])
            if (group["label"] == subject).any():
                tables.append(saved_by(group, [label for label in labels if label not in ablations], subject, where))
                if group["label"].isin(ablations).any():
                    tables.append(taken_away(group, ablations, subject, where))
            tables += [operating_points(group, where), papers_presentation(group, labels, where)]
        tables = [*(paper_tables(rows, paper, trainings) if paper else []), *tables]
        notes = _notes(frame)
        for drawn in figures.draw(frame, labels, trainings, paper, subject, ablations):
            name = f"{suite}-{drawn.name}" if drawn.name else suite
            pictures.append(Picture(drawn.caption, figures.save(drawn.figure, out / "figures", name)))
            pngs.append((out / "figures" / f"{name}.png", drawn.caption))
            files += [out / "figures" / f"{name}.svg", pngs[-1][0]]
        if not trainings:
            notes.append("no trained model is kept, and without one there is no figure of weights or steps")
    frame = frame.drop(columns=ITEM_COLUMNS, errors="ignore")
    frame.to_csv(files[1], index=False)
    if parquet:
        files.append(files[1].with_suffix(".parquet"))
        frame.to_parquet(files[-1], engine="pyarrow", index=False)
    lines = "".join(f"- {note}\n" for note in notes) + "".join(f"- failed: {failure}\n" for failure in failures)
    sections = "\n".join(table.markdown(level=2) for table in tables)
    files[0].write_text(f"# {suite}\n\n{lines}\n{sections}", encoding="utf-8")
    files[2].write_text(_page(suite, tables, notes, failures, pictures), encoding="utf-8")
    return Report(summaries, notes, failures, files, pngs)


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401 (pandas writes parquet through it)
    except ImportError as error:
        raise ConfigError("parquet needs pyarrow; install it with: pip install 'backslash-rdo[parquet]'") from error


def _notes(frame: pd.DataFrame) -> list[str]:
    """Where the numbers come from, and what a reader must know before trusting them."""
    seeds = [str(seed) for seed in sorted(set(frame["seed"]))]
    commits = sorted({str(commit)[:10] for commit in frame["commit"]})
    days = sorted({date[:10] for date in frame["date"]})
    made = {column: ", ".join(sorted({str(value) for value in frame[column]})) for column in _MADE_WITH}
    notes = [
        f"{len(frame)} operating point{'s' if len(frame) > 1 else ''}; "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(seeds)})"
        + ("; one seed cannot tell a small difference from chance" if len(seeds) == 1 else ""),
        f"commit {', '.join(commits)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}; torch "
        f"{made['torch_version']}, Python {made['python_version']}, {made['device']}, threads: {made['threads']}; "
        f"suite version {made['suite_version']}",
        f"{_budgets(frame)}; trainings took {frame['training_seconds'].min():.0f} to "
        f"{frame['training_seconds'].max():.0f} s",
    ]
    if len(commits) > 1:
        notes.append("the rows come from different commits: run the suite anew before quoting them together")
    if frame["dirty"].any():
        notes.append("some rows were made with uncommitted changes to the code")
    return notes


def _budgets(frame: pd.DataFrame) -> str:
    budgets = {
        where: f"{part['train_steps'].iloc[0]} steps, {part['train_examples'].iloc[0]} examples"
        for where, part in frame.groupby(["architecture", "task"], sort=False)
    }
    if len(set(budgets.values())) == 1:
        return f"same budget for every training: {next(iter(budgets.values()))}"
    named = (f"{budget} ({architecture} on {task})" for (architecture, task), budget in budgets.items())
    return f"same budget for every method: {'; '.join(named)}"


def _page(
    suite: str, tables: Sequence[Table], notes: Sequence[str], failures: Sequence[str], pictures: Sequence[Picture]
) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rdo_harness"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # Figures are our own matplotlib output; their texts are paths, so nothing of a row is markup in them.
    shown = [(picture.caption, Markup(picture.svg[picture.svg.find("<svg") :])) for picture in pictures]
    return environment.get_template("report.html.j2").render(
        suite=suite, tables=tables, notes=notes, failures=failures, figures=shown
    )
