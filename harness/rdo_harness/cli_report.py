"""``rdo report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rdo.errors import ConfigError
from rdo_harness.cli_options import DONE, Commands

if TYPE_CHECKING:
    from rich.console import Console

    from rdo_harness.results import Row
    from rdo_harness.suite import Suite


_PAPER = "paper"
"""What stands for all suites of the paper."""

_EXAMPLES = """\
examples:
  rdo report quickstart --out rdo-results
  rdo report classification --out results --parquet
  rdo report paper --scale small --out results --page docs/paper.md
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``."""
    report = commands.add_parser(
        "report",
        help="build the tables, figures and HTML page of a suite again from its rows",
        description="Build the tables, figures and HTML page of a suite from its rows. `paper` stands for all suites "
        "of the paper, and makes one page about them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_suite(report, "where the results are")
    report.add_argument("--parquet", action="store_true", help="write the rows as parquet, too (needs pyarrow)")
    report.add_argument(
        "--page", type=Path, metavar="FILE", help="of `paper`: where the page goes (default: DIR/paper.md)"
    )
    report.set_defaults(func=_report)


def add_suite(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the arguments that name a suite and the folder of its results; ``out`` says what that is."""
    parser.add_argument(
        "suite", metavar="SUITE", help="name of a suite (see `rdo list suites`) or path of a .toml file"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rdo-results"), metavar="DIR", help=f"{out} (default: %(default)s)"
    )
    parser.add_argument("--scale", metavar="SCALE", help="small (default), medium or full, for suites that have scales")
    parser.add_argument(
        "--model", metavar="PATH_OR_ID", help="one model in the place of all: a folder, or a name on the hub"
    )


def chosen_suite(arguments: argparse.Namespace) -> Suite:
    """The suite that these arguments name."""
    from rdo_harness.suite import load_suite

    suite = load_suite(arguments.suite, arguments.scale)
    return suite if arguments.model is None else suite.with_model(arguments.model)


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rdo_harness.run import rows_path

    if arguments.suite == _PAPER:
        if arguments.model is not None:
            raise ConfigError("--model is for one suite, not for `rdo report paper`")
        return _report_paper(arguments)
    if arguments.page is not None:
        raise ConfigError("--page is for `rdo report paper`; a suite has its page in --out")
    suite = chosen_suite(arguments)
    rows = finished_rows(suite, arguments.out)
    if not rows:
        raise ConfigError(
            f"no rows of suite {suite.name!r} in {rows_path(arguments.out, suite)}; first: rdo run {arguments.suite}"
        )
    write_report(Console(), rows, arguments.out, suite, arguments.parquet)
    return DONE


def finished_rows(suite: Suite, out: Path) -> list[Row]:
    """The rows of a suite in the order of its methods, and of the seeds that it was run with.

    Where other suites measured its points their rows count too, but with no other seeds: means over different seeds
    would be compared.
    """
    from rdo_harness.cells import cells, relabelled
    from rdo_harness.results import read_rows
    from rdo_harness.run import rows_path

    own = rows_path(out, suite)
    others = [row for path in sorted(own.parent.glob("*.jsonl")) if path != own for row in read_rows(path)]
    found: dict[str, Row] = {}
    for row in [*(row for row in others if "error" not in row), *read_rows(own)]:
        if "key" in row and not ("error" in row and row["key"] in found):
            found[row["key"]] = row
    run = {row["seed"] for row in read_rows(own) if "seed" in row}
    seeds = max((row.get("seed", 0) + 1 for row in found.values()), default=1)
    every = [
        cell
        for cell in cells(suite.restricted(None, max(seeds, len(suite.seeds))))
        if cell.key in found and (not run or cell.seed in run)
    ]
    order = [method.label for part in suite.parts for method in part.methods]
    every.sort(key=lambda cell: order.index(cell.method.label))
    return [relabelled(found[cell.key], cell) for cell in every]


def write_report(console: Console, rows: list[Row], out: Path, suite: Suite, parquet: bool = False) -> None:
    """Build the report of these rows and print its summary."""
    from rdo_harness.report import build

    trainings = _trainings(rows, out, suite)
    built = build(
        rows,
        out,
        suite.name,
        paper=suite.paper,
        trainings=trainings,
        parquet=parquet,
        subject=suite.subject,
        ablations=suite.ablations,
    )
    built.print_summary(console)


def _trainings(rows: list[Row], out: Path, suite: Suite) -> list[Row]:
    from rdo_harness.cells import cells
    from rdo_harness.trainings import collect

    keys = {row["key"] for row in rows if "error" not in row}
    seeds = max((row["seed"] + 1 for row in rows), default=1)
    return collect((cell for cell in cells(suite.restricted(None, seeds)) if cell.key in keys), out)


def _report_paper(arguments: argparse.Namespace) -> int:
    """Every suite of the paper that comes in this scale, and the page about them."""
    from rdo_harness.cells import cells
    from rdo_harness.paper_page import Finished, write_page
    from rdo_harness.report import build
    from rdo_harness.run import rows_path
    from rdo_harness.suite import SCALES, load_suite, scales_of, suite_names

    scale, out = arguments.scale or SCALES[0], arguments.out
    found = []
    for name in suite_names():
        if not name.startswith(f"{_PAPER}-") or scale not in scales_of(name):
            continue
        suite = load_suite(name, scale)
        rows = finished_rows(suite, out)
        trainings, figures = _trainings(rows, out, suite), []
        if rows:
            built = build(rows, out, suite.name, paper=suite.paper, trainings=trainings, parquet=arguments.parquet)
            figures = built.figures
        points = len({cell.key for cell in cells(suite)})
        print(f"{suite.name}: {len(rows)} of {points} points")
        measured = [row for row in rows if "error" not in row]
        ran = rows_path(out, suite).exists()
        found.append(Finished(suite, measured, trainings, points, figures, ran))
    if not any(one.rows for one in found):
        raise ConfigError(f"no rows of the paper's suites in {out / 'runs'}; first: rdo run paper-table4 --out {out}")
    page = arguments.page or out / "paper.md"
    write_page(found, page, out, scale)
    print(f"written: {page}")
    return DONE
