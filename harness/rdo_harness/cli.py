"""The command ``rdo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from rdo.errors import ConfigError, RdoError, UnknownNameError
from rdo.registry import Registry
from rdo_harness.cli_options import DONE, FAILED, INTERRUPTED, MISUSED

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
    from rdo_harness import (
        cli_coders,
        cli_doctor,
        cli_evaluate,
        cli_export,
        cli_files,
        cli_peers,
        cli_push,
        cli_report,
        cli_run,
    )

    parser = argparse.ArgumentParser(
        prog="rdo",
        description="Train, compress and compare language models on the rate-distortion plane.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rdo {rdo.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli_run.add_command(commands)
    cli_report.add_command(commands)
    _add_list(commands)
    cli_doctor.add_command(commands)
    cli_files.add_commands(commands)
    cli_export.add_command(commands)
    cli_push.add_command(commands)
    cli_evaluate.add_command(commands)
    cli_coders.add_commands(commands)
    cli_peers.add_commands(commands)
    return parser


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("list", help="list what can be run, compared or used")
    parser.add_argument("what", choices=LISTS, metavar="{" + ",".join(LISTS) + "}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_list)


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
