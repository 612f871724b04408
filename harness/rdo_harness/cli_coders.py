"""The command ``rdo compare-coders``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rdo.errors import ConfigError, UnknownNameError
from rdo_harness.cli_options import Commands
from rdo_harness.config import parse_step

if TYPE_CHECKING:
    from rdo_harness.coder_comparison import Effort
    from rdo_harness.coder_peers.base import Peer
    from rdo_harness.coder_points import Target

_DESCRIPTION = """\
Code the matrices of checkpoints with every coder of rdo and with the coders and compressors of others that are
installed, on the same symbols in the same run, decode and compare everything, and write a table of sizes and speeds.
Points that are measured are kept: after an interruption, the same command continues; remove OUT/runs/coders.jsonl to
measure anew. Without a checkpoint, the table is made from the rows there are."""
_EXAMPLES = """\
examples:
  rdo compare-coders model.safetensors
  rdo compare-coders normal=a.safetensors sparse=b.safetensors --bits 1,2,3.3 --out results
  rdo compare-coders model/ --relative-step 0.5 --coders 'rdo rans,constriction,zstd -19'
  rdo compare-coders grid=gemma/ --bits 2 --speed-only --most-symbols 30000000

NNCodec runs in an environment of its own: set RDO_NNCODEC_PYTHON to its Python.
"""
_BITS = "1,2,3.3"
_QUICK_SYMBOLS = 1 << 16


def add_commands(commands: Commands) -> None:
    """Add the command; it sets ``func``."""
    parser = commands.add_parser(
        "compare-coders",
        help="compare entropy coders, ours and others', on the weights of checkpoints",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints", nargs="*", metavar="[NAME=]PATH", help="plain .safetensors file or model directory"
    )
    points = parser.add_mutually_exclusive_group()
    points.add_argument(
        "--bits",
        metavar="A,B",
        help=f"find relative steps that give these bits of entropy per weight (default: {_BITS})",
    )
    points.add_argument(
        "--relative-step", metavar="A,B", help="steps as multiples of the root mean square of each tensor"
    )
    points.add_argument("--step", metavar="A,B", help="absolute steps, like 2^-8 or 0.004")
    parser.add_argument("--coders", metavar="A,B", help="compare only these: names of the table, or of tools")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each coder (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="no more turns after this long (default: %(default)s)"
    )
    parser.add_argument("--most-symbols", type=int, metavar="N", help="code at most N, the same share of every tensor")
    parser.add_argument(
        "--speed-only", action="store_true", help="report no sizes: for weights that were rounded before"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"one turn, {_QUICK_SYMBOLS:,} symbols: to try the command"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rdo-results"), metavar="DIR", help="where results go (default: %(default)s)"
    )
    parser.set_defaults(func=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from rdo_harness.coder_comparison import available_arms, compare, rows_path
    from rdo_harness.coder_points import Checkpoint
    from rdo_harness.coder_tables import write_tables
    from rdo_harness.results import read_rows

    failed = 0
    if arguments.checkpoints:
        checkpoints = [Checkpoint.parse(text) for text in arguments.checkpoints]
        points, effort = _targets(arguments), _effort(arguments)
        arms = _chosen(available_arms(_tell), arguments.coders)
        rows = compare(checkpoints, points, arms, effort, arguments.out, _tell)
        failed = sum("error" in row for row in rows)
    found = read_rows(rows_path(arguments.out))
    if not found:
        raise ConfigError(f"no rows in {rows_path(arguments.out)}; name a checkpoint to measure")
    print("written: " + ", ".join(map(str, [rows_path(arguments.out), *write_tables(found, arguments.out)])))
    if failed:
        print(f"rdo: error: {failed} arms failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _targets(arguments: argparse.Namespace) -> list[Target]:
    from rdo_harness.coder_points import targets

    if arguments.step:
        return targets([], [], _numbers(arguments.step))
    if arguments.relative_step:
        return targets([], _numbers(arguments.relative_step), [])
    return targets(_numbers(arguments.bits or _BITS), [], [])


def _numbers(text: str) -> list[float]:
    return [parse_step(part.strip()) for part in text.split(",")]


def _effort(arguments: argparse.Namespace) -> Effort:
    from rdo_harness.coder_comparison import Effort

    if arguments.rounds < 1:
        raise ConfigError(f"--rounds must be 1 or more, got {arguments.rounds}")
    if arguments.most_symbols is not None and arguments.most_symbols < 1:
        raise ConfigError(f"--most-symbols must be 1 or more, got {arguments.most_symbols}")
    if arguments.quick:
        return Effort(1, 0.0, _QUICK_SYMBOLS, speed_only=arguments.speed_only)
    return Effort(arguments.rounds, arguments.seconds, arguments.most_symbols, speed_only=arguments.speed_only)


def _chosen(arms: Sequence[Peer], names: str | None) -> list[Peer]:
    if names is None:
        return list(arms)
    wanted = [name.strip() for name in names.split(",")]
    known = {name for arm in arms for name in (arm.label, arm.name)}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownNameError(f"no coder {name!r} to compare; {hint}there are: {', '.join(sorted(known))}")
    return [arm for arm in arms if arm.label in wanted or arm.name in wanted]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
