"""Tables for the suites that repeat the paper: our numbers beside its own, and what became of its claims."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from rdo_harness.claims import Claim, best_bits, judge
from rdo_harness.observation import PAPER_STEP
from rdo_harness.report_tables import Table
from rdo_harness.results import Row
from rdo_harness.significance import wilson

_COLUMNS = {
    "eg0": "exp_golomb_k0_bits_per_parameter",
    "huffman": "huffman_bits_per_parameter",
}
_BESIDE = "Beside the paper"
_STAND_IN = (
    "Ours stands in for the paper's: smaller models and other splits, so compare the changes, not the numbers. "
    "Tables and scales are counted in ours. "
)


@cache
def published() -> dict[str, list[dict[str, Any]]]:
    """The paper's numbers, as in paper.toml."""
    return tomllib.loads((resources.files("rdo_harness") / "paper.toml").read_text(encoding="utf-8"))


def paper_tables(rows: Sequence[Row], paper: str, trainings: Sequence[Row] = ()) -> list[Table]:
    """The claims that the rows decide and, where paper.toml has the paper's numbers, both sets of them.

    Args:
        paper: a suite's key ``paper``, such as ``"table4"``.
        trainings: rows of :mod:`rdo_harness.trainings`, for Table 3.
    """
    claims = judge(rows)
    beside = beside_the_paper(rows, paper, trainings)
    return [*([claims_table(claims)] if claims else []), *([beside] if beside else [])]


def beside_the_paper(rows: Sequence[Row], paper: str, trainings: Sequence[Row] = ()) -> Table | None:
    """Our numbers under the paper's, or None where paper.toml has none for this table or figure."""
    kept = [row for row in rows if "error" not in row]
    tables = {
        "table3": lambda: _orders(kept, trainings),
        "table4": lambda: _before_and_after(kept, "table4", "architecture"),
        "table5": lambda: _before_and_after(kept, "table5", "task"),
        "table6": lambda: _regularisers(kept),
        "fig4": lambda: _lambdas(kept),
        "fig5": lambda: _lambdas(kept),
    }
    return tables[paper]() if kept and paper in tables else None


def claims_table(claims: Sequence[Claim]) -> Table:
    """Every claim with its verdict."""
    header = ["claim", "where", "verdict", "numbers"]
    note = (
        "No loss means at most one point of accuracy, or one percent of cross entropy, against normal training rounded "
        "to 2^-8 unless said otherwise. p: paired, over test items. Bits are those of the best of all coders."
    )
    return Table("Claims", note, header, [[c.text, c.where, c.verdict, c.why] for c in claims], texts=4)


def _orders(rows: Sequence[Row], trainings: Sequence[Row]) -> Table:
    """Table 3: Exp-Golomb of the orders 0 to 4 after BackSlash."""
    labels = {row["training_key"]: row["label"] for row in rows if row["method"] == "backslash"}
    ours = [row for row in trainings if row["training_key"] in labels]
    lines = []
    for entry in published()["table3"]:
        lines.append(_with_least(f"{entry['model']} (paper)", "BackSlash", entry["exp_golomb"]))
        lines += [_order(row, labels) for row in ours if row["architecture"] == entry["ours"]]
    known = {entry["ours"] for entry in published()["table3"]}
    lines += [_order(row, labels) for row in ours if row["architecture"] not in known]
    header = ["model", "training", *(f"k = {k}" for k in range(5))]
    note = f"{_STAND_IN}Bits per coded parameter at the step 2^-8; the least is marked *."
    return Table(_BESIDE, note, header, lines, texts=2)


def _order(row: Row, labels: dict[str, str]) -> list[str]:
    what = f"{labels[row['training_key']]}, lambda {row['lam']:g}, seed {row['seed']}"
    return _with_least(f"{row['architecture']}, {row['task']}", what, row["exp_golomb_bits_per_parameter"][:5])


def _with_least(model: str, training: str, bits: Sequence[float]) -> list[str]:
    return [model, training, *(f"{value:.2f}" + ("*" if value == min(bits) else "") for value in bits)]


def _before_and_after(rows: Sequence[Row], paper: str, by: str) -> Table:
    """Tables 4 and 5: normal training and BackSlash."""
    lines = []
    for entry in published()[paper]:
        for index, training in enumerate(("normal", "BackSlash")):
            bits = [f"{entry[coder][index]:.2f}" for coder in _COLUMNS]
            lines.append([f"{entry['model']} (paper)", training, *bits, "", f"{entry['accuracy'][index]:.2f} %", ""])
        lines += [_ours(row) for row in rows if row[by] == entry["ours"] and row.get("step") == PAPER_STEP]
    known = {entry["ours"] for entry in published()[paper]}
    lines += [_ours(row) for row in rows if row[by] not in known and row.get("step") == PAPER_STEP]
    header = ["model", "training", "EG0", "Huffman", "best coder", "metric", "95 % over items"]
    return Table(
        _BESIDE, f"{_STAND_IN}Each of ours is under the paper's model it stands in for.", header, lines, texts=2
    )


def _regularisers(rows: Sequence[Row]) -> Table:
    """Table 6: the adaptive shape and fixed ones."""
    lines = []
    for entry in published()["table6"]:
        bits = [f"{entry[coder]:.2f}" for coder in _COLUMNS]
        accuracy = f"{entry['accuracy']:.2f} %"
        lines.append(["BERT 110M (paper)", entry["model"], *bits, "", accuracy, "", f"{entry['shape']:.2f}"])
        lines += [[*_ours(row), f"{row['shape']:.2f}"] for row in rows if row["label"] == entry["ours"]]
    known = {entry["ours"] for entry in published()["table6"]}
    lines += [[*_ours(row), f"{row['shape']:.2f}"] for row in rows if row["label"] not in known]
    header = ["model", "regulariser", "EG0", "Huffman", "best coder", "metric", "95 % over items", "final nu"]
    return Table(_BESIDE, _STAND_IN + "All of ours have the lambda that is named.", header, lines, texts=2)


def _lambdas(rows: Sequence[Row]) -> Table:
    """Figures 4 and 5: bits and accuracy over lambda."""
    [entry] = published()["fig4"]
    lines = [
        [
            "BERT 110M (paper)",
            "normal" if lam == 0 else f"BackSlash, lambda {lam}",
            f"{eg0:.2f}",
            f"{huffman:.2f}",
            "",
            f"{accuracy:.2f} %",
            "",
        ]
        for lam, eg0, huffman, accuracy in zip(
            *(entry[key] for key in ("lam", "eg0", "huffman", "accuracy")), strict=True
        )
    ]
    swept = sorted((row for row in rows if row.get("step") == PAPER_STEP), key=lambda row: row.get("lam") or 0.0)
    lines += [_ours(row) for row in swept]
    header = ["model", "training", "EG0", "Huffman", "best coder", "metric", "95 % over items"]
    note = f"{_STAND_IN}The paper's lambda has other units than ours (loss per bit per parameter)."
    return Table(_BESIDE, note, header, lines, texts=2)


def _ours(row: Row) -> list[str]:
    accuracy = row["metric_name"] == "accuracy"
    items = int(row["test_items"])
    low, high = wilson(round(row["metric"] * items), items) if accuracy else (0.0, 0.0)
    metric = f"{100 * row['metric']:.2f} %" if "accuracy" in row["metric_name"] else _with_unit(row)
    bits = [f"{row[column]:.2f}" for column in _COLUMNS.values()]
    lam = "" if row.get("lam") is None else f", lambda {row['lam']:g}"
    between = f"{100 * low:.1f}-{100 * high:.1f}" if accuracy else ""
    what = f"{row['label']}{lam}, seed {row['seed']}"
    return [f"{row['architecture']}, {row['task']}", what, *bits, f"{best_bits(row):.2f}", metric, between]


def _with_unit(row: Row) -> str:
    return f"{row['metric']:.3f} {row['metric_name'].replace('_per_', '/').replace('_', ' ')}"
