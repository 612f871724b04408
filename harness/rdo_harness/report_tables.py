"""The tables of a report: the summary with BD-rates, every operating point, and the paper's own presentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rdo_harness.metrics import BDRate, Interval, bd_rate, interval, metric_title

CODERS = {
    "fixed length": "fixed_length_bits_per_parameter",
    "EG0": "exp_golomb_k0_bits_per_parameter",
    "EG best k": "exp_golomb_bits_per_parameter",
    "Huffman": "huffman_bits_per_parameter",
    "rANS": "rans_bits_per_parameter",
}
AS_CODED = "coded_bits_per_parameter"
"""What is on the disk: of several coders the best in each tensor."""
LOSS = 0.01
"""The loss at which sizes are compared: one point of a rate such as accuracy, or one percent of cross entropy."""


@dataclass(frozen=True)
class Table:
    """A titled table of strings, with a sentence about how to read it; the first ``texts`` columns are no numbers."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    texts: int = 1

    def markdown(self, level: int = 3) -> str:
        """GitHub-flavoured Markdown under a heading of this level, padded so that the source is readable too."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        text = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        rule = (
            "|"
            + "|".join("-" * (width + 1) + ("-" if column < self.texts else ":") for column, width in enumerate(widths))
            + "|"
        )
        return f"{'#' * level} {self.title}\n\n{self.note}\n\n" + "\n".join([text[0], rule, *text[1:]]) + "\n"


def best_coder(frame: pd.DataFrame) -> pd.Series[float]:
    """Bits per coded parameter under the coder that needs the fewest; lossless methods have only their own."""
    sizes = frame.reindex(columns=[*CODERS.values(), AS_CODED])
    return sizes.min(axis=1).fillna(frame["file_bits_per_parameter"])


def _with_coders(group: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], str]:
    """Rows, the sizes to show of them by their titles, and a sentence if the files are not all rANS's.

    Where they are not, what stands in the place of rANS is the size as coded, which rows of before there was another
    coder have only as that of rANS.
    """
    if AS_CODED not in group or not group.loc[group[AS_CODED].notna(), CODERS["rANS"]].isna().any():
        return group, CODERS, ""
    others = {name: column for name, column in CODERS.items() if name != "rANS"}
    group = group.assign(**{AS_CODED: group[AS_CODED].fillna(group[CODERS["rANS"]])})
    said = " As coded: by the coder, of those that the suite names, that took fewest bytes in each tensor."
    return group, {**others, "as coded": AS_CODED}, said


def compare(group: pd.DataFrame, label: str, anchor: str, rate: str) -> tuple[Interval | None, list[BDRate]]:
    """BD-rate of a label against the anchor, seed by seed: the interval over the seeds that have one, and each."""
    results = []
    for seed in sorted(set(group.loc[group["label"] == label, "seed"])):
        curves = [
            list(zip(part[rate], part["cross_entropy"], strict=True))
            for part in (group[(group["label"] == name) & (group["seed"] == seed)] for name in (anchor, label))
        ]
        results.append(bd_rate(*curves))
    values = [result.percent for result in results if result.percent is not None]
    return (interval(values) if values else None), results


def summary(group: pd.DataFrame, labels: Sequence[str], anchor: str, where: str) -> Table:
    metric = str(group["metric_name"].iloc[0])
    header = [
        "method",
        "points",
        "seeds",
        "BD-rate",
        "BD-rate, file",
        "overlap (nats)",
        f"{metric_title(metric)} kept: bits/param",
        "MB",
        "of bf16",
    ]
    reference = group[group["label"] == anchor]
    rows = []
    for label in labels:
        part = group[group["label"] == label]
        if part.empty:
            continue
        change, results = compare(group, label, anchor, "best_coder_bits_per_parameter")
        file_change, _ = compare(group, label, anchor, "file_bits_per_parameter")
        overlaps = [result.overlap for result in results if result.overlap]
        coverage = sum(result.coverage for result in results) / max(len(results), 1)
        why = next((result.reason for result in results if result.reason), "")
        smallest = _smallest(part, reference, metric)
        rows.append(
            [
                label,
                str(len(part)),
                str(part["seed"].nunique()),
                "anchor" if label == anchor else _percent(change) or why,
                "anchor" if label == anchor else _percent(file_change) or why,
                f"{overlaps[0][0]:.3f}-{overlaps[0][1]:.3f} ({coverage:.0%})" if overlaps and label != anchor else "",
                *smallest,
            ]
        )
    loss = f"one point of {metric}" if _is_rate(metric) else f"1 % in {metric_title(metric)}"
    note = (
        f"BD-rate: mean change in bits at equal test cross entropy against '{anchor}' (Pareto fronts of at least four "
        "points, PCHIP; each seed by itself, +- 95 % interval over seeds); bits per coded parameter under the best "
        "coder. In brackets: the share of the anchor's range that the overlap covers. 'Kept' is the smallest file that "
        f"loses at most {loss} against normal training without compression, mean over seeds."
    )
    return Table(f"Summary: {where}", note, header, rows)


def saved_by(group: pd.DataFrame, labels: Sequence[str], subject: str, where: str) -> Table:
    """What one method saves against each of the others, each of which is the anchor in turn."""
    note = (
        f"Mean change in bits at equal test cross entropy if '{subject}' takes the place of each of the others "
        "(BD-rate as above, seed by seed, +- 95 % interval over seeds). Range: the share of the other method's own "
        "range of cross entropy that both curves cover, mean over seeds; what is said holds there."
    )
    return _in_place_of(group, labels, subject, f"What {subject} saves: {where}", note)


def taken_away(group: pd.DataFrame, ablations: Sequence[str], subject: str, where: str) -> Table:
    """What each ingredient of a method is worth: what it saves against the same without that."""
    note = (
        f"Mean change in bits at equal test cross entropy if '{subject}' takes the place of the same with something "
        "taken away or exchanged: what that is worth. As in the table before."
    )
    return _in_place_of(group, ablations, subject, f"Ingredients of {subject}: {where}", note)


def _in_place_of(group: pd.DataFrame, labels: Sequence[str], subject: str, title: str, note: str) -> Table:
    rows = []
    for label in labels:
        if label == subject or group[group["label"] == label].empty:
            continue
        seeds = set(group.loc[group["label"] == label, "seed"])
        change, results = compare(group[group["seed"].isin(seeds)], subject, label, "best_coder_bits_per_parameter")
        told = [result for result in results if result.percent is not None]
        coverage = f"{sum(result.coverage for result in told) / len(told):.0%}" if told else ""
        why = next((result.reason for result in results), "no seed in common")
        shown = _percent(change) or why.replace("the anchor's", "its")  # the line's own method is the anchor
        rows.append([label, str(len(told)), shown, coverage])
    return Table(title, note, ["in place of", "seeds", "bits", "range"], rows)


def _is_rate(metric: str) -> bool:
    return metric == "accuracy"


def _smallest(part: pd.DataFrame, reference: pd.DataFrame, metric: str) -> list[str]:
    """Bits per parameter, MB and percent of bf16 of the smallest file that keeps the metric, averaged over seeds."""
    found = []
    for seed, points in part.groupby("seed"):
        base = reference.loc[reference["seed"] == seed, "uncompressed_metric"].mean()
        kept = (
            points[points["metric"] >= base - LOSS]
            if _is_rate(metric)
            else points[points["metric"] <= base * (1 + LOSS)]
        )
        if kept.empty:
            return ["none", "", ""]
        found.append(kept.loc[kept["file_bytes"].idxmin()])
    bits, size = (sum(row[key] for row in found) / len(found) for key in ("file_bits_per_parameter", "file_bytes"))
    share = sum(row["file_bytes"] / row["uncompressed_bytes"] for row in found) / len(found)
    return [f"{bits:.2f}", f"{size / 1e6:.2f}", f"{share:.1%}"]


def operating_points(group: pd.DataFrame, where: str) -> Table:
    metric = str(group["metric_name"].iloc[0])
    group, coders, said = _with_coders(group)
    header = ["method", "seed", "setting", metric_title(metric), "cross entropy (nats)"]
    header += [f"{name} (bits)" for name in coders] + ["best k", "entropy (bits)", "file (MB)", "zeros", "shape nu"]
    header += ["training (s)", "peak memory (MB)"]
    rows = [
        [
            str(row["label"]),
            str(row["seed"]),
            str(row["setting"]),
            _number(row["metric"], ".4f"),
            _number(row["cross_entropy"], ".4f"),
            *(_number(row[column], ".3f") for column in coders.values()),
            _number(row["exp_golomb_best_k"], ".0f"),
            _number(row["entropy_bits_per_parameter"], ".3f"),
            _number(row["file_bytes"] / 1e6, ".3f"),
            _number(row["sparsity"], ".1%"),
            _number(row["shape"], ".2f"),
            _number(row["training_seconds"], ".1f"),
            _number(row["peak_memory_bytes"] / 1e6, ".0f"),
        ]
        for row in group.to_dict("records")
    ]
    note = (
        "Steps are absolute, or in units of sigma, the root mean square of a tensor. "
        "Bits are per coded parameter, tables and scales included, except the entropy; the file is everything: header, "
        f"raw tensors, checksums. Peak memory is that of the training.{said}"
    )
    return Table(f"Operating points: {where}", note, header, rows, texts=3)


def papers_presentation(group: pd.DataFrame, labels: Sequence[str], where: str) -> Table:
    """The paper's presentation: fixed length is 100 %."""
    metric = str(group["metric_name"].iloc[0])
    group, coders, said = _with_coders(group)
    header = ["method", "setting", metric_title(metric), *coders, "size left, EG0"]
    group = group[group[CODERS["fixed length"]].notna()]  # lossless methods have no symbols
    absolute = group[group["step"].notna()] if group["step"].notna().any() else group
    rows = []
    for label in labels:
        part = absolute[absolute["label"] == label]
        for setting, points in part.groupby("setting", sort=False):
            bits = {name: float(points[column].mean()) for name, column in coders.items()}
            rows.append(
                [
                    label,
                    str(setting),
                    _number(points["metric"].mean(), ".4f"),
                    *(f"{size:.2f}" for size in bits.values()),
                    f"{bits['EG0'] / bits['fixed length']:.0%}",
                ]
            )
    note = (
        "Bits per coded parameter at an absolute step, as in the paper's Table 4, and Exp-Golomb k = 0 as a share of "
        "fixed length = 100 %. Against k = 0 alone a baseline looks worse than it is: compare the best k and "
        f"{list(coders)[-1]}. Means over seeds; all bytes of tables and scales counted, which the paper does not.{said}"
    )
    return Table(f"The paper's presentation: {where}", note, header, rows, texts=2)


def _percent(value: Interval | None) -> str:
    if value is None:
        return ""
    spread = "" if value.half_width is None else f" +- {value.half_width:.1f}"
    return f"{value.mean:+.1f}{spread} %"


def _number(value: Any, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)
