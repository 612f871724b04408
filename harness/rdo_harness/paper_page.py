"""One page about the paper: our tables and figures beside its own, the verdict on its claims, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rdo_harness.claims import FAILS, HOLDS, OPEN, Claim, judge
from rdo_harness.paper_tables import beside_the_paper, claims_table
from rdo_harness.report_tables import Table
from rdo_harness.results import Row
from rdo_harness.suite import Suite

_ORDER = [*(f"table{n}" for n in range(3, 7)), *(f"fig{n}" for n in range(1, 9)), "questions"]


@dataclass(frozen=True)
class Finished:
    """What there is of one suite: its rows, its trainings, how many points it has in all, and its figures' files.

    ``ran`` is whether the suite was run itself; otherwise its rows are those of others that have the same points.
    """

    suite: Suite
    rows: list[Row]
    trainings: list[Row]
    points: int
    figures: list[tuple[Path, str]]
    ran: bool


def write_page(found: Sequence[Finished], path: Path, out: Path, scale: str) -> None:
    """Write the page as Markdown.

    Args:
        found: the paper's suites; those without rows are named as missing.
        path: of the page; its links are relative to it.
        out: the folder of results, as the commands on the page name it.
        scale: of the suites.
    """
    import jinja2

    found = sorted(found, key=lambda one: _ORDER.index(one.suite.paper))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rdo_harness"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    claims = list(dict.fromkeys(claim for one in found for claim in judge(one.rows)))
    text = environment.get_template("paper.md.j2").render(
        scale=scale,
        out=out.name,
        page=os.path.relpath(path, out.parent),
        runs=[one.suite for one in found if one.ran],
        budgets=_budgets(found),
        progress=_progress(found),
        tally=_tally(claims),
        claims=claims_table(claims),
        sections=[_section(one, path) for one in found if one.rows],
        missing=[one.suite for one in found if not one.rows],
        seeds=sorted({row["seed"] for one in found for row in one.rows}),
        time=_time([row for one in found for row in one.rows]),
        commits=sorted({row["commit"][:10] for one in found for row in one.rows}),
    )
    path.write_text(text, encoding="utf-8")


def _section(one: Finished, page: Path) -> dict[str, object]:
    table = beside_the_paper(one.rows, one.suite.paper, one.trainings)
    return {
        "title": one.suite.description,
        "table": table,
        "figures": [(os.path.relpath(path, page.parent), caption) for path, caption in one.figures],
    }


def _budgets(found: Sequence[Finished]) -> Table:
    """What was trained on what, and for how long."""
    rows = {row["key"]: row for one in found for row in one.rows if "error" not in row}.values()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["architecture"], row["task"]), []).append(row)
    lines = []
    for (architecture, task), group in groups.items():
        first = group[0]
        trainings = {row["training_key"]: row["training_seconds"] for row in group}
        lines.append(
            [
                architecture,
                f"{first['parameters'] / 1e6:.1f}M",
                task,
                f"{first['test_items']}",
                f"{first['train_steps']} x {first['train_examples'] // first['train_steps']}",
                str(len(trainings)),
                f"{median(trainings.values()):.0f}",
                str(len(group)),
            ]
        )
    header = ["model", "weights", "task", "test items", "steps x batch", "trainings", "seconds each", "points"]
    note = (
        "Test items are reviews, messages or documents, and tokens or bytes where text is predicted. Seconds are the "
        "median of the trainings."
    )
    return Table("Models, data and budgets", note, header, lines)


def _time(rows: Sequence[Row]) -> str:
    """What all of it took, by the seconds in the rows: as they are, and had the machine always been as quiet."""
    points = list({row["key"]: row for row in rows}.values())
    trainings = list({row["training_key"]: row for row in points}.values())
    training, best_training = _hours(trainings, lambda row: row["training_seconds"])
    point, best_point = _hours(points, _point_seconds)
    threads = ", ".join(sorted({f"{row['threads']}" for row in points}))
    return (
        f"One after the other, the {len(trainings)} trainings took {training:.1f} h and the {len(points)} points "
        f"{point:.1f} h (threads: {threads}), the wait for other programs on the machine included; "
        f"{best_training:.1f} h and {best_point:.1f} h if all had been as quick as the quickest of their model and "
        "task. Where threads are one, `--jobs 2` on two idle cores takes about half of that. Downloads are not counted."
    )


def _hours(rows: Sequence[Row], seconds: Callable[[Row], float]) -> tuple[float, float]:
    """The hours that these took, and would have taken at the quickest pace of each model, task and budget."""
    alike: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        key = (row["architecture"], row["task"], row["train_examples"])
        alike.setdefault(key, []).append(seconds(row))
    taken = sum(map(sum, alike.values()))
    quickest = sum(len(times) * min(times) for times in alike.values())
    return taken / 3600, quickest / 3600


def _point_seconds(row: Row) -> float:
    """Compression, decoding and evaluation; rows have the time of the test split alone."""
    evaluated = row["evaluate_seconds"] * (1 + row["validation_items"] / row["test_items"])
    return float(row["compress_seconds"] + row["decompress_seconds"] + evaluated)


def _progress(found: Sequence[Finished]) -> str:
    done = {row["key"] for one in found for row in one.rows if "error" not in row}
    partial = [one for one in found if one.rows and len(one.rows) < one.points and not one.suite.parts_of]
    if not partial:
        return f"All {len(done)} operating points are there."
    named = ", ".join(f"{one.suite.name} ({len(one.rows)} of {one.points})" for one in partial)
    return f"{len(done)} operating points are there. Not finished: {named}."


def _tally(claims: Sequence[Claim]) -> Table:
    """Where each claim holds and where not."""
    verdicts = (HOLDS, FAILS, OPEN)
    lines = []
    for text in dict.fromkeys(claim.text for claim in claims):
        same = [claim for claim in claims if claim.text == text]
        counts = [sum(claim.verdict == verdict for claim in same) for verdict in verdicts]
        lines.append([text, *(str(count) if count else "" for count in counts)])
    note = "In how many of the comparisons below it holds: each is one model, task, seed and form of the method."
    return Table("In short", note, ["claim", *verdicts], lines)
