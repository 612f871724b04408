"""``python -m asv_tools.record COMMIT...``: measures commits in the environment in use, for asv.

asv itself refuses ranges of commits there (``--python=same``), and measures an editable install whatever the commit.
Here each commit is extracted and measured in a process of its own, with today's benchmarks.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.machine import Machine, MachineCollection
from asv.results import Results, get_filename
from asv.runner import BenchmarkResult
from asv.util import UserError, load_json, write_json

from asv_tools.commits import extracted
from asv_tools.figures import ROOT, Figure, benchmarks, every
from asv_tools.sides import Side

RESULTS = ROOT / "results" / "asv"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m asv_tools.record",
        description="Measure commits in this environment and save the figures under results/asv.",
    )
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--machine", required=True, help="a name that `asv machine` knows, or that has results")
    parser.add_argument("--only", default="", metavar="REGEX", help="figures whose name contains it")
    parser.add_argument("--gated", action="store_true", help="only those that CI compares")
    arguments = parser.parse_args(argv)
    machine = _machine(arguments.machine)
    known = known_benchmarks()
    figures = [f for f in every() if re.search(arguments.only, f.label) and (f.gate or not arguments.gated)]
    for commit in arguments.commits:
        commit, date = _git("show", "-s", "--format=%H %ct", f"{commit}^{{commit}}").split()
        started = time.perf_counter()
        values = _measured(commit, figures)
        save(machine, commit, 1000 * int(date), values, known)
        missing = sum(value is None or math.isnan(value) for value in values.values())
        seconds = time.perf_counter() - started
        print(f"{commit[:10]}: {len(values) - missing} figures, {missing} skipped or failed, {seconds:.0f} s")
    return 0


def save(
    machine: dict[str, str], commit: str, date: int, values: Mapping[Figure, float | None], known: Benchmarks
) -> None:
    """Add figures to asv's file of a commit of that date, in milliseconds; those of other runs stay.

    As asv has it, None is a figure that failed, and NaN one that is not known.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = get_filename(machine["machine"], commit, f"existing-py{version}")
    if (RESULTS / path).exists():
        results = Results.load(str(RESULTS / path), machine["machine"])
    else:
        parameters = {**machine, "python": version}
        results = Results(parameters, {}, commit, date, version, f"existing-py{version}", {})
    for benchmark in {figure.benchmark for figure in values}:
        measured = {figure.index or 0: value for figure, value in values.items() if figure.benchmark == benchmark}
        count = math.prod(len(axis) for axis in known[benchmark]["params"])
        row = [measured.get(index, math.nan) for index in range(count)]
        found = BenchmarkResult(row, [None] * count, [None] * count, 0, "", None)
        results.add_result(known[benchmark], found, selected_idx=set(measured))
    results.save(str(RESULTS))


def known_benchmarks() -> Benchmarks:
    """The benchmarks of this working tree, written where `asv publish` looks for their units and versions."""
    plain = str | int | float | list | dict | bool
    entries = [
        {name: value for name, value in vars(found).items() if isinstance(value, plain) and not name.startswith("_")}
        for found in benchmarks()
    ]
    settings = Config.load(str(ROOT / "asv.conf.json"))
    settings.results_dir = str(RESULTS)  # in the file it is relative to the folder that asv is started in
    known = Benchmarks(settings, entries)
    known.save()
    return known


def _measured(commit: str, figures: Sequence[Figure]) -> dict[Figure, float | None]:
    side = Side(extracted(ROOT, commit))
    try:
        values = {figure: side.measure(figure) for figure in figures}
    finally:
        side.restart()
    for figure, error in side.errors.items():
        print(f"failed at {commit[:10]}: {figure.label}: {error}", file=sys.stderr)
    return {figure: None if figure in side.errors else value for figure, value in values.items()}


def _machine(name: str) -> dict[str, str]:
    """What is known of a machine; it is in results/asv after its first run."""
    path = RESULTS / name / "machine.json"
    if not path.exists():
        try:
            machine = MachineCollection.load(name)
        except UserError as error:
            raise SystemExit(f"{error} Name it first: asv machine --yes --machine {name}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(str(path), machine, Machine.api_version)
    return dict(load_json(str(path), Machine.api_version))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
