"""``rdo run``."""

from __future__ import annotations

import argparse
import csv
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo.errors import ConfigError
from rdo_harness.cli_options import DONE, FAILED, INTERRUPTED, Commands
from rdo_harness.cli_report import add_suite, chosen_suite, write_report

if TYPE_CHECKING:
    from rdo_harness.suite import Suite
    from rdo_harness.workers import Workers

_RUN = """\
Run a suite: every operating point of every method, trained, compressed, read back, decoded and evaluated. Finished
points are kept: after an interruption, the same command continues; a training goes on from its last checkpoint. Suites
share trained models and measured points in DIR/work."""
_RUN_EXAMPLES = """\
examples:
  rdo run quickstart
  rdo run classification --seeds 1 --methods rtn,backslash
  rdo run paper-table4 --scale small --jobs 2
  rdo run paper-table4 --scale full --dry-run
  rdo run my-suite.toml --out somewhere
  rdo run paper-fig4 --model path/of/a/model
  rdo run my-suite.toml --submit slurm --submit-options slurm_partition=gpu,timeout_min=240,gpus_per_node=1
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``."""
    run = commands.add_parser(
        "run",
        help="run a suite of comparisons; interrupt and continue at will",
        description=_RUN,
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_suite(run, "where results go")
    run.add_argument("--seeds", type=int, metavar="N", help="run seeds 0..N-1 instead of those in the suite")
    run.add_argument(
        "--methods",
        metavar="A,B",
        help='run only these methods of the suite, by name or label; a label with a comma in "double quotes"',
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained, what is done of it, and about how long the rest takes",
    )
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, or cluster jobs, at once")
    run.add_argument(
        "--submit",
        metavar="CLUSTER",
        help='send every training and point to a cluster as a job: "slurm", or "local" to try it without one',
    )
    run.add_argument(
        "--submit-options", metavar="K=V,..", default="", help="options of submitit, such as timeout_min=240"
    )
    run.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rdo_harness.progress import ProgressDisplay, counted
    from rdo_harness.run import current_rows, rows_path, run

    full = chosen_suite(arguments)
    methods = None
    if arguments.methods is not None:  # as a line of CSV, since labels may have commas
        methods = [name.strip() for name in next(csv.reader([arguments.methods], skipinitialspace=True))]
    suite = full.restricted(methods, arguments.seeds)
    console = Console()
    console.print(f"[bold]{suite.name}[/bold]: {suite.description}")
    if arguments.dry_run:
        return _dry_run(suite, arguments.out)
    try:
        with _workers(arguments) as workers, ProgressDisplay(console, arguments.jobs) as display:
            rows = run(suite, arguments.out, display, workers)
    except KeyboardInterrupt:
        kept = len(current_rows(suite, arguments.out))
        print(
            f"rdo: interrupted; {kept} finished points are kept in {rows_path(arguments.out, suite)}; "
            "the same command continues",
            file=sys.stderr,
        )
        return INTERRUPTED
    write_report(console, rows, arguments.out, suite)
    failed = sum("error" in row for row in rows)
    if failed:
        failures = f"{counted(failed, 'operating point')} failed"
        print(f"rdo: error: {failures}; the same command tries again", file=sys.stderr)
    return FAILED if failed else DONE


def _dry_run(suite: Suite, out: Path) -> int:
    from rdo_harness.plan import COLUMNS, lines, plan
    from rdo_harness.tables import print_table

    trainings = plan(suite, out)
    print_table(COLUMNS, lines(trainings))
    left = [training for training in trainings if not training.trained]
    known = [training.seconds for training in left if training.seconds is not None]
    times = [f"about {sum(known) / 3600:.1f} h of training"] if known or not left else []
    times += [f"{len(left) - len(known)} of unknown time"] if len(known) < len(left) else []
    points, done = (sum(getattr(training, name) for training in trainings) for name in ("points", "done"))
    print(
        f"to do: {len(left)} of {len(trainings)} trainings ({', '.join(times)}); "
        f"{points - done} of {points} operating points"
    )
    return DONE


def _workers(arguments: argparse.Namespace) -> AbstractContextManager[Workers | None]:
    from rdo_harness.run import work_path
    from rdo_harness.workers import ProcessWorkers, cluster_workers

    if arguments.submit is None:
        if arguments.submit_options:
            raise ConfigError("--submit-options needs --submit")
        return nullcontext() if arguments.jobs == 1 else ProcessWorkers(arguments.jobs)
    options: dict[str, Any] = {}
    for option in filter(None, arguments.submit_options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--submit-options: {option!r} is not of the form name=value")
        options[key] = int(value) if value.isdecimal() else value
    folder = work_path(arguments.out) / arguments.submit
    return nullcontext(cluster_workers(arguments.submit, folder, arguments.jobs, options))
