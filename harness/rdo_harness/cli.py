"""The command ``rdo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo.errors import ConfigError, RdoError, UnknownNameError
from rdo.registry import Registry

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, MISUSED = 0, 1, 2
INTERRUPTED = 130
LISTS = ("suites", "methods", "tasks", "architectures", "coders", "entropy-models")

_EXAMPLES = """\
examples:
  rdo run quickstart                          compare BackSlash with post-training baselines in minutes
  rdo compress model.safetensors model.rdo    quantise and entropy-code a checkpoint
  rdo inspect model.rdo                       what is in it, to the byte
  rdo list methods                            what can be compared

exit codes: 0 done, 1 failed, 2 misused, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.func(arguments))
    except (ConfigError, UnknownNameError) as error:
        print(f"rdo: error: {error}", file=sys.stderr)
        return MISUSED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (RdoError, OSError) as error:
        print(f"rdo: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("rdo: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    import rdo
    from rdo_harness import cli_coders, cli_files

    parser = argparse.ArgumentParser(
        prog="rdo",
        description="Train, compress and compare language models on the rate-distortion plane.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rdo {rdo.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_report(commands)
    _add_list(commands)
    cli_files.add_commands(commands)
    cli_coders.add_commands(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a suite of comparisons; interrupt and continue at will",
        description="Run a suite: every operating point of every method, trained, compressed, read back, decoded "
        "and evaluated. Finished points are kept: after an interruption, the same command continues.",
        epilog="examples:\n  rdo run quickstart\n  rdo run classification --seeds 1 --methods rtn,backslash\n"
        "  rdo run my-suite.toml --out somewhere\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suite", metavar="SUITE", help="name of a suite (see `rdo list suites`) or path of a .toml file"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rdo-results"), metavar="DIR", help="where results go (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="run seeds 0..N-1 instead of those in the suite")
    parser.add_argument("--methods", metavar="A,B", help="run only these methods of the suite, by name or label")
    parser.set_defaults(func=_run)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="build the tables, figures and HTML page of a suite again from its rows",
        epilog="example:\n  rdo report quickstart --out rdo-results\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", metavar="SUITE", help="name of a suite or path of a .toml file")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rdo-results"),
        metavar="DIR",
        help="where the results are (default: %(default)s)",
    )
    parser.set_defaults(func=_report)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("list", help="list what can be run, compared or used")
    parser.add_argument("what", choices=LISTS, metavar="{" + ",".join(LISTS) + "}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_list)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rdo_harness.progress import ProgressDisplay
    from rdo_harness.run import current_rows, rows_path, run
    from rdo_harness.suite import load_suite

    full = load_suite(arguments.suite)
    methods = None if arguments.methods is None else [name.strip() for name in arguments.methods.split(",")]
    suite = full.restricted(methods, arguments.seeds)
    console = Console()
    console.print(f"[bold]{suite.name}[/bold]: {suite.description}")
    try:
        with ProgressDisplay(console) as display:
            rows = run(suite, arguments.out, display)
    except KeyboardInterrupt:
        kept = len(current_rows(suite, arguments.out))
        print(
            f"rdo: interrupted; {kept} finished points are kept in {rows_path(arguments.out, suite)}; "
            "the same command continues",
            file=sys.stderr,
        )
        return INTERRUPTED
    _write_report(console, rows, arguments.out, suite.name)
    failed = sum("error" in row for row in rows)
    if failed:
        print(f"rdo: error: {failed} operating points failed; the same command tries them again", file=sys.stderr)
    return FAILED if failed else DONE


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rdo_harness.results import read_rows
    from rdo_harness.run import cells, rows_path
    from rdo_harness.suite import load_suite

    suite = load_suite(arguments.suite)
    found = read_rows(rows_path(arguments.out, suite))
    seeds = max((row["seed"] + 1 for row in found), default=1)
    keys = {cell.key for cell in cells(suite.restricted(None, max(seeds, len(suite.seeds))))}
    rows = list({row["key"]: row for row in found if row["key"] in keys}.values())
    if not rows:
        raise ConfigError(
            f"no rows of suite {suite.name!r} in {rows_path(arguments.out, suite)}; first: rdo run {arguments.suite}"
        )
    _write_report(Console(), rows, arguments.out, suite.name)
    return DONE


def _write_report(console: Console, rows: list[dict[str, object]], out: Path, suite: str) -> None:
    from rdo_harness.report import build

    built = build(rows, out, suite)
    built.print_summary(console)


def _list(arguments: argparse.Namespace) -> int:
    import json

    entries = _entries(arguments.what)
    if arguments.json:
        print(json.dumps([{"name": name, "description": text} for name, text in entries], indent=2))
        return DONE
    width = max(len(name) for name, _ in entries)
    for name, text in entries:
        print(f"{name:<{width}}  {text}")
    return DONE


def _entries(what: str) -> list[tuple[str, str]]:
    if what == "suites":
        from rdo_harness.suite import load_suite, suite_names

        return [(name, load_suite(name).description) for name in suite_names()]
    from rdo.coders import CODERS
    from rdo.entropy import ENTROPY_MODELS
    from rdo_harness.registries import ARCHITECTURES, METHODS, TASKS

    registries: dict[str, Registry[Any]] = {
        "methods": METHODS,
        "tasks": TASKS,
        "architectures": ARCHITECTURES,
        "coders": CODERS,
        "entropy-models": ENTROPY_MODELS,
    }
    return [(name, (plugin.__doc__ or "").strip().splitlines()[0]) for name, plugin in registries[what].items()]


if __name__ == "__main__":
    sys.exit(main())
