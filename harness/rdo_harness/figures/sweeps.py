"""Bits and quality over one setting: lambda, the quantisation step, the share of pruned weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from rdo_harness.figures.bands import over_seeds
from rdo_harness.figures.style import REFERENCE, log_height, look, panels
from rdo_harness.metrics import metric_title
from rdo_harness.observation import PAPER_STEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def over_lambda(frame: pd.DataFrame, coders: Mapping[str, str]) -> Figure:
    """A row of two panels per model: bits under some coders, and the metric, over lambda; normal training is 0.

    Args:
        coders: column of the bits by the name of the coder.
    """
    frame = frame[(frame["step"] == PAPER_STEP) & frame["method"].isin(["rtn", "backslash"])]
    groups = list(frame.groupby(["task", "architecture"], sort=False))
    with panels(len(groups), 2, 4.0) as (figure, grid):
        for (bits, metrics), ((task, architecture), group) in zip(grid, groups, strict=True):
            points = over_seeds(group).fillna({"lam": 0.0}).sort_values("lam")
            lams = list(points["lam"])
            for number, (name, column) in enumerate(coders.items()):
                bits.plot(range(len(lams)), points[column], linewidth=1.4, label=name, **look(number))
            _quality(metrics, range(len(lams)), points, 2, "quality with its 95 % interval")
            for panel in (bits, metrics):
                panel.set_xticks(range(len(lams)), ["0: normal\ntraining" if not lam else f"{lam:g}" for lam in lams])
                panel.set_xlabel("lambda (loss per bit per parameter)")
            bits.set_ylim(bottom=0)
            bits.set_ylabel("bits per coded parameter")
            bits.set_title(f"{architecture} on {task}, step $2^{{-8}}$")
            _name_metric(metrics, group)
    return figure


def over_steps(frame: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """A row of two panels per model: the metric and the cross entropy over absolute steps, one line a label."""
    frame = frame[frame["step"].notna() & frame["sparsity_target"].isna()]
    groups = list(frame.groupby(["task", "architecture"], sort=False))
    numbers = _numbers(groups, labels)
    with panels(len(groups), 2, 4.0) as (figure, grid):
        for (metrics, losses), ((task, architecture), group) in zip(grid, groups, strict=True):
            for label, part in _trained(group, labels):
                points = over_seeds(part).sort_values("step", ascending=False)
                exponents = [math.log2(step) for step in points["step"]]
                _quality(metrics, exponents, points, numbers[label], label)
                _quality(losses, exponents, points, numbers[label], label, "cross_entropy")
            for panel in (metrics, losses):
                ticks = sorted({round(math.log2(step)) for step in group["step"]})
                panel.set_xticks(ticks, [f"$2^{{{tick}}}$" for tick in ticks])
                panel.invert_xaxis()
                panel.set_xlabel("quantisation step")
            _name_metric(metrics, group)
            metrics.set_title(f"{architecture} on {task}")
            losses.set_ylabel("test cross entropy (nats, log axis)")
            log_height(losses)
            losses.set_title("cross entropy")
    return figure


def over_pruning(frame: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """One panel per model: the metric over the share of weights set to zero, one line a label; 0 is the whole model."""
    groups = list(frame[frame["sparsity_target"].notna()].groupby(["task", "architecture"], sort=False))
    numbers = _numbers(groups, labels)
    with panels(-(-len(groups) // 2), min(2, len(groups)), 3.8) as (figure, grid):
        cells = [panel for row in grid for panel in row]
        for panel, ((task, architecture), group) in zip(cells, groups, strict=False):
            for label, part in _trained(group, labels):
                points = over_seeds(part).sort_values("sparsity_target")
                whole = points.iloc[:1].assign(sparsity_target=0.0, metric=points["uncompressed_metric"].iloc[0])
                whole["metric_low"] = whole["metric_high"] = whole["metric"]
                points = pd.concat([whole, points], ignore_index=True)
                _quality(panel, 100 * points["sparsity_target"], points, numbers[label], label)
            if group["metric_name"].iloc[0] != "accuracy" and group["metric"].max() > 2 * group["metric"].min():
                log_height(panel)
            panel.set_xlabel("weights set to zero (%)")
            _name_metric(panel, group)
            panel.set_title(f"{architecture} on {task}")
    return figure


def _trained(group: pd.DataFrame, labels: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The points of every training, all its seeds together, with what the legend calls it."""
    for label in labels:
        for lam, part in group[group["label"] == label].groupby("lam", dropna=False, sort=False):
            yield label if pd.isna(lam) else f"{label}, lambda {lam:g}", part


def _numbers(groups: Sequence[tuple[Any, pd.DataFrame]], labels: Sequence[str]) -> dict[str, int]:
    """A number for each line of the legend, in all panels the same."""
    return {name: n for n, name in enumerate(dict.fromkeys(name for _, g in groups for name, _ in _trained(g, labels)))}


def _quality(
    panel: Axes, where: Sequence[float] | range, points: pd.DataFrame, number: int, label: str, column: str = "metric"
) -> None:
    """A line of a metric with its band."""
    style = look(number)
    panel.plot(where, points[column], linewidth=1.4, label=label, **style)
    band = points[f"{column}_low"], points[f"{column}_high"]
    panel.fill_between(where, *band, color=style["color"], alpha=0.12, linewidth=0)


def _name_metric(panel: Axes, group: pd.DataFrame) -> None:
    name = str(group["metric_name"].iloc[0])
    panel.set_ylabel(f"test {metric_title(name)}" + (": lower is better" if name == "bits_per_byte" else ""))
    panel.axhline(float(group["uncompressed_metric"].iloc[0]), label="normal training, not compressed", **REFERENCE)
    panel.set_title(metric_title(name))
