"""Tables of the comparison of coders, from its rows."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rdo_harness.coder_peers.base import PEERS
from rdo_harness.report_tables import Table
from rdo_harness.results import Row

_SPEEDS = ("one_thread_encode", "one_thread_decode", "all_threads_encode", "all_threads_decode")
_SLOW = " *"
_SPEED_HEADER = ["encode", "decode", "encode, all threads", "decode, all threads"]
_SPEED_NOTE = (
    "Million symbols a second: one thread by processor time; all threads, where a tool has them, by the wall clock. "
    "*: a slow arm, given the middle of every tensor ({part}). All take int32 symbols and give them back; making bytes "
    "of them for compressors of bytes is in the times."
)


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each arm at each point, in the order in which the points first came."""
    kept: dict[tuple[object, ...], Row] = {}
    for row in rows:
        kept[(row["checkpoint"], row["target"], row["speed_only"], row["coder"])] = row
    return list(kept.values())


def derived(row: Row) -> Row:
    """A row with what follows from it: bits per symbol, percent over the entropy, and million symbols a second."""
    more: Row = {"bits_per_symbol": None, "over_entropy_percent": None}
    if row.get("bytes") is not None:
        more["bits_per_symbol"] = 8 * row["bytes"] / row["symbols"]
        if row["entropy_bytes"] and row["footing"] == "symbols":
            more["over_entropy_percent"] = 100 * (row["bytes"] / row["entropy_bytes"] - 1)
    for speed in _SPEEDS:
        seconds = row.get(f"{speed}_{'cpu' if speed.startswith('one') else 'wall'}_seconds")
        more[f"{speed}_msymbols_per_second"] = row["symbols"] / seconds / 1e6 if seconds else None
    return {**row, **more}


def write_tables(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write OUT/tables/coders.md and coders.csv from rows of :func:`rdo_harness.coder_comparison.compare`."""
    current = [derived(row) for row in newest(rows)]
    good = [row for row in current if "error" not in row]
    symbols = [row for row in good if row["footing"] == "symbols"]
    dense = [row for row in symbols if not row["speed_only"]]
    floats = [row for row in good if row["footing"] != "symbols" and not row["speed_only"]]
    tables = [*([density(dense)] if dense else []), *([speed(symbols)] if symbols else [])]
    tables += [other_footing(floats)] if floats else []
    tables += [point(part, where) for where, part in _points(symbols).items()]
    files = [out / "tables" / "coders.md", out / "tables" / "coders.csv"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    failures = "".join(
        f"- failed: {_where(row)}, {row['coder']}: {row['error']}\n" for row in current if "error" in row
    )
    notes = "".join(f"- {note}\n" for note in _notes(good))
    text = f"## coders\n\n{notes}{failures}\n" + "\n".join(table.markdown() for table in tables)
    files[0].write_text(text, encoding="utf-8")
    columns = list(dict.fromkeys(column for row in current for column in row))
    with files[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(current)
    return files


def density(rows: Sequence[Row]) -> Table:
    """Percent over the entropy, a line for each coder and a column for each point; the smallest first."""
    points = _points(rows)
    lines: dict[str, list[str]] = {}
    overs: dict[str, list[float]] = {}
    for column, (_, part) in enumerate(points.items()):
        for row in part:
            over = row["over_entropy_percent"]
            lines.setdefault(_name(row), [""] * len(points))[column] = "" if over is None else f"{over:+.2f} %"
            overs.setdefault(_name(row), []).append(float("inf") if over is None else over)
    order = sorted(lines, key=lambda name: statistics.mean(overs[name]))
    whole = [next((row for row in part if not row["slow"]), part[0]) for part in points.values()]
    entropy = ["order-0 entropy (bits)", *(f"{8 * row['entropy_bytes'] / row['symbols']:.3f}" for row in whole)]
    note = (
        "Bytes of all streams with tables, and 4 bytes for the length of each (two where a table and a payload are "
        "apart), over the sum over tensors of the number of symbols times their order-0 entropy. Steps and sizes of "
        "tensors, the same for all, are left out. Every stream was decoded and compared. A slow arm (*) was given the "
        "middle of every tensor, and is compared with the entropy of that."
    )
    return Table("Over the order-0 entropy", note, ["coder", *points], [entropy, *([n, *lines[n]] for n in order)])


def speed(rows: Sequence[Row]) -> Table:
    """The range over all points of each coder's speeds."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_name(row), []).append(row)
    lines = []
    for name, part in found.items():
        speeds = [[row[f"{key}_msymbols_per_second"] for row in part] for key in _SPEEDS]
        lines.append([name, *(_range([value for value in values if value]) for values in speeds)])
    return Table("Speed", _SPEED_NOTE.format(part=_part(rows)), ["coder", *_SPEED_HEADER], lines)


def other_footing(rows: Sequence[Row]) -> Table:
    """Arms that code floating-point numbers: bits per weight."""
    points = _points(rows)
    lines: dict[str, list[str]] = {}
    for column, (_, part) in enumerate(points.items()):
        for row in part:
            lines.setdefault(row["coder"], [""] * len(points))[column] = f"{row['bits_per_symbol']:.2f}"
    speeds = {line[0]: line[1:] for line in speed(rows).rows}
    body = [[name, *values, *speeds[name][:2]] for name, values in lines.items()]
    note = (
        "Bits per weight, on another footing: these code floating-point numbers without loss. The original weights "
        "hold more than any of the quantised ones; of the dequantised ones the coder is not told that they are "
        "multiples of a step. Speeds in million weights a second, one thread, processor time."
    )
    return Table("Floating-point weights", note, ["coder", *points, *_SPEED_HEADER[:2]], body)


def point(rows: Sequence[Row], where: str) -> Table:
    """Everything about one operating point."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["slow"], row["bytes"] or 0)):
        size = ["", "", ""]
        if row["bytes"] is not None:
            over = row["over_entropy_percent"]
            size = [f"{row['bytes']:,}", f"{row['bits_per_symbol']:.4f}", "" if over is None else f"{over:+.2f} %"]
        speeds = [_range([row[f"{key}_msymbols_per_second"] or 0.0]) for key in _SPEEDS]
        lines.append([_name(row), f"{row['symbols']:,}", *size, *speeds, str(row["rounds"]), row["form"]])
    first = rows[0]
    step = f"step {first['step']:g}" if first["step"] else f"step {first['relative_step']:g} x rms of each tensor"
    header = ["coder", "symbols", "bytes", "bits/symbol", "over entropy", *_SPEED_HEADER, "rounds", "form"]
    only = " Speed only: sizes of these weights would say nothing." if first["speed_only"] else ""
    return Table(where, f"{first['tensors']} tensors, {step}.{only}", header, lines)


def _points(rows: Sequence[Row]) -> dict[str, list[Row]]:
    points: dict[str, list[Row]] = {}
    for row in rows:
        points.setdefault(_where(row), []).append(row)
    return points


def _where(row: Row) -> str:
    return f"{row['checkpoint']}, {row['target']}"


def _name(row: Row) -> str:
    return str(row["coder"]) + (_SLOW if row["slow"] else "")


def _part(rows: Sequence[Row]) -> str:
    counts = sorted({row["symbols"] for row in rows if row["slow"]})
    return f"{counts[0]:,} to {counts[-1]:,} symbols in all" if counts else "none here"


def _range(values: Sequence[float]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    if not high:
        return ""
    texts = [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def _notes(rows: Sequence[Row]) -> list[str]:
    """Where the numbers come from, and what a reader must know before trusting them."""
    if not rows:
        return ["no rows"]
    commits = sorted({row["commit"][:12] for row in rows})
    first, rounds = rows[0], [row["rounds"] for row in rows]
    slowdowns = [
        row[f"one_thread_{way}_wall_seconds"] / row[f"one_thread_{way}_cpu_seconds"]
        for row in rows
        for way in ("encode", "decode")
        if row[f"one_thread_{way}_cpu_seconds"]
    ]
    notes = [
        f"commit {', '.join(commits)}; {first['date'][:10]}; {first['device']}, {first['threads']} threads; torch "
        f"{first['torch_version']}; {', '.join(sorted({row['version'] for row in rows}))}",
        f"seconds are medians of {min(rounds)} to {max(rounds)} rounds in which the arms take turns",
    ]
    if slowdowns:
        notes.append(
            f"one thread took {statistics.median(slowdowns):.2f} times its processor time on the wall clock (median; "
            f"{max(slowdowns):.1f} times at most): far above 1, other programs ran beside, and the columns of all "
            "threads are too low"
        )
    absent = sorted(set(PEERS.names()) - {row["peer"] for row in rows})
    if absent:
        notes.append(f"not measured, because not installed or not asked for: {', '.join(absent)}")
    if len(commits) > 1:
        notes.append("the rows come from different commits: measure anew before quoting them together")
    if any(row["dirty"] for row in rows):
        notes.append("some rows were made with uncommitted changes to the code")
    return notes
