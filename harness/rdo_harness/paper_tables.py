"""Tables for the suites that repeat the paper: our numbers beside its own, and what became of its claims."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from rdo_harness.claims import judge
from rdo_harness.report_tables import Table
from rdo_harness.results import Row
from rdo_harness.significance import wilson

_COLUMNS = {
    "eg0": "exp_golomb_k0_bits_per_parameter",
    "huffman": "huffman_bits_per_parameter",
}


def published() -> dict[str, list[dict[str, Any]]]:
    """The paper's tables, as in paper.toml."""
    return tomllib.loads((resources.files("rdo_harness") / "paper.toml").read_text(encoding="utf-8"))


def paper_tables(rows: Sequence[Row], paper: str) -> list[Table]:
    """The claims that the rows decide and, for a table that is in paper.toml, both sets of numbers.

    Args:
        paper: a suite's key ``paper``, such as ``"table4"``.
    """
    claims = judge(rows)
    tables = []
    if claims:
        header = ["claim", "where", "verdict", "numbers"]
        note = (
            "No loss means at most one point of accuracy, or one percent of cross entropy. p: paired, over test items."
        )
        tables.append(Table("Claims", note, header, [[c.text, c.where, c.verdict, c.why] for c in claims]))
    if paper in published():
        tables.append(_beside(rows, paper))
    return tables


def _beside(rows: Sequence[Row], paper: str) -> Table:
    header = ["model", "training", "EG0", "Huffman", "metric", "95 % over items"]
    by, lines = ("architecture" if paper == "table4" else "task"), []
    for entry in published()[paper]:
        for index, training in enumerate(("normal", "BackSlash")):
            bits = [f"{entry[coder][index]:.2f}" for coder in _COLUMNS]
            lines.append([f"{entry['model']} (paper)", training, *bits, f"{entry['accuracy'][index]:.2f} %", ""])
        lines += [
            _ours(row) for row in rows if "error" not in row and row[by] == entry["ours"] and row.get("step") == 2.0**-8
        ]
    note = (
        "Ours stands in for the paper's model in the lines above it: smaller models and other splits, so compare the "
        "change from normal training to BackSlash, not the numbers. Tables and scales are counted in ours."
    )
    return Table("Beside the paper", note, header, lines)


def _ours(row: Row) -> list[str]:
    accuracy = row["metric_name"] == "accuracy"
    items = int(row["test_items"])
    low, high = wilson(round(row["metric"] * items), items) if accuracy else (0.0, 0.0)
    metric = f"{100 * row['metric']:.2f} %" if "accuracy" in row["metric_name"] else f"{row['metric']:.3f}"
    bits = [f"{row[column]:.2f}" for column in _COLUMNS.values()]
    lam = "" if row.get("lam") is None else f", lambda {row['lam']:g}"
    between = f"{100 * low:.1f}-{100 * high:.1f}" if accuracy else ""
    return [f"{row['architecture']}, {row['task']}", f"{row['label']}{lam}, seed {row['seed']}", *bits, metric, between]
