"""The command ``python -m asv_tools.gate`` (with harness/ on the path): exits with 1 if a figure became worse."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence

from asv_tools import commits, history
from asv_tools.compare import LEAD, Change, compare
from asv_tools.figures import ROOT, Figure, gated
from asv_tools.overrides import accepted
from asv_tools.sides import Side
from rdo.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m asv_tools.gate",
        description="Measure this working tree and an earlier commit in turns, and fail if a figure became worse.",
    )
    parser.add_argument("--base", metavar="COMMIT", help="default: HEAD, or the parent of the last change of the code")
    parser.add_argument("--history", action="store_true", help="compare with results/asv instead of a commit")
    parser.add_argument("--only", default="", metavar="REGEX", help="figures whose name contains it")
    parser.add_argument("--lead", type=int, default=LEAD, help="rounds more worse than not (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names of the figures")
    arguments = parser.parse_args(argv)
    figures = [figure for figure in gated() if re.search(arguments.only, figure.label)]
    if arguments.list:
        print("\n".join(figure.label for figure in figures))
        return 0
    try:
        overrides = accepted({figure.label for figure in gated()})
        compared = commits.comparison(ROOT, arguments.base)
    except (ConfigError, ValueError) as error:
        parser.error(str(error))
    started = time.perf_counter()
    if compared.base is None or arguments.history:
        changes, suspects = _with_history(figures, overrides, arguments.lead)
    else:
        print(f"this working tree against {compared.base[:10]}, in turns, {len(figures)} figures")
        changes, suspects = _with_commit(compared.base, figures, overrides, arguments.lead), compared.suspects
    print(report(changes, suspects))
    print(f"{time.perf_counter() - started:.0f} s")
    return int(any(change.fails for change in changes))


def _with_commit(base: str, figures: Sequence[Figure], overrides: dict[str, float], lead: int) -> list[Change]:
    before, after = Side(commits.extracted(ROOT, base)), Side(ROOT)

    def restart() -> None:
        before.restart()
        after.restart()

    try:
        changes = compare(figures, before.measure, after.measure, restart, overrides, lead)
    finally:
        restart()
    _print_errors(after)
    return changes


def _with_history(
    figures: Sequence[Figure], overrides: dict[str, float], lead: int
) -> tuple[list[Change], Sequence[str]]:
    """What changed since the records, and the commits that may have done what fails."""
    records = history.newest(ROOT / "results" / "asv", ROOT, figures)
    known = [figure for figure in figures if figure in records]
    where = sorted({f"{record.commit[:10]} on {record.machine}" for record in records.values()})
    print(f"this working tree against the record in results/asv ({', '.join(where) or 'empty'}): {len(known)} figures")
    if len(known) < len(figures):
        print(f"not compared, for want of a record from this hardware: {len(figures) - len(known)} figures")
    side = Side(ROOT)
    try:
        changes = compare(known, lambda figure: records[figure].value, side.measure, side.restart, overrides, lead)
    finally:
        side.restart()
    _print_errors(side)
    blamed = {records[change.figure].commit for change in changes if change.fails}
    lines = [line for commit in sorted(blamed) for line in commits.since(ROOT, commit)]
    return changes, list(dict.fromkeys(lines))


def _print_errors(side: Side) -> None:
    for figure, error in side.errors.items():
        print(f"failed: {figure.label}: {error}")


def report(changes: Sequence[Change], suspects: Sequence[str]) -> str:
    """What changed, as a table, and the commits that may have done it; one line if nothing did."""
    told = [change for change in changes if change.worse or (change.better and change.figure.gate != "ratio")]
    missing = sum(math.isnan(change.ratio) and not change.lost for change in changes)
    rest = f"{len(changes) - len(told) - missing} figures within their limits, {missing} without a value before"
    if not told:
        return rest
    lines = [("", "figure", "before", "after", "unit", "change", "limit", "rounds")]
    for change in sorted(told, key=lambda change: (not change.fails, not change.worse, change.figure.label)):
        verdict = "FAIL" if change.fails else "accepted" if change.worse else "better"
        percent = "lost" if change.lost else f"{100 * (change.ratio - 1):+.2f} %"
        numbers = f"{change.before:.6g}", f"{change.after:.6g}", change.figure.unit, percent
        lines.append(
            (verdict, change.figure.label, *numbers, f"{100 * (change.figure.limit - 1):+.1f} %", str(change.rounds))
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if any(change.fails for change in changes):
        if suspects:
            table += ["", "done by:" if len(suspects) == 1 else "done by one of:", *(f"  {line}" for line in suspects)]
        table += ["", "If it is worth it, say so in harness/asv_tools/overrides.toml."]
    return "\n".join([*table, "", rest])


if __name__ == "__main__":
    sys.exit(main())
