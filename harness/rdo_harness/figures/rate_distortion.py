"""Rate-distortion curves with confidence bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from rdo_harness.figures.bands import lossless, over_seeds
from rdo_harness.figures.style import REFERENCE, fit_to, look, panels
from rdo_harness.metrics import metric_title, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_TEXT = ("bits_per_byte", "perplexity")
RATE = "best_coder_bits_per_parameter"
_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def rate_distortion(frame: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """One row of two panels per task and architecture: cross entropy and the task's metric over bits per parameter.

    Lines join the Pareto front of each method, of means over seeds; points off the front are faint. Bands are 95 %
    intervals, over seeds or, where there is one seed, over test items. Markers are hollow where a method was measured
    with fewer seeds than others. The panels are cut where a model is of no more use: at twice the least cross entropy,
    and at 1.25 times for text, of which most cannot be predicted. They say how many points that leaves out. The first
    label is the anchor. Lossless methods, at five times the bits of the others and at the quality of the uncompressed
    model, are named in the corner instead.
    """
    groups = list(frame.groupby(["task", "architecture"], sort=False))
    with panels(len(groups), 2) as (figure, grid):
        for (losses, metrics), ((task, architecture), whole) in zip(grid, groups, strict=True):
            group, anchor = whole[~lossless(whole)], whole[whole["label"] == labels[0]]
            points = {
                label: over_seeds(group[group["label"] == label]) for label in labels if label in set(group["label"])
            }
            for label, part in points.items():
                fewer = group.loc[group["label"] == label, "seed"].nunique() < group["seed"].nunique()
                _draw(losses, metrics, part, labels.index(label), label, hollow=fewer)
            times = 1.25 if whole["metric_name"].iloc[0] in _OF_TEXT else 2.0
            most = times * group["cross_entropy"].min()
            shown = group[group["cross_entropy"] <= most]
            singles = [part for part in points.values() if len(part) == 1 and part["cross_entropy"].iloc[0] <= most]
            for panel, column in ((losses, "cross_entropy"), (metrics, "metric")):
                reference = float(anchor[f"uncompressed_{column}"].mean())
                if math.isfinite(reference):
                    panel.axhline(reference, label="uncompressed, normal training", **REFERENCE)
                ends = [float(part[f"{column}{end}"].iloc[0]) for part in singles for end in ("_low", "_high")]
                fit_to(panel, [value for value in (*shown[column], reference, *ends) if math.isfinite(value)])
                _note(panel, len(group) - len(shown), times, whole[lossless(whole)])
                panel.set_xlabel("bits per coded parameter, best coder, tables and scales included")
            metric = metric_title(str(whole["metric_name"].iloc[0]))
            losses.set_ylabel("test cross entropy (nats)")
            metrics.set_ylabel(f"test {metric}")
            seeds = whole["seed"].nunique()
            losses.set_title(f"{architecture} on {task}, {seeds} seed{'s' if seeds > 1 else ''}: lower left is better")
            metrics.set_title(metric)
    return figure


def _draw(losses: Axes, metrics: Axes, points: pd.DataFrame, index: int, label: str, *, hollow: bool) -> None:
    front = pareto_front(list(zip(points[RATE], points["cross_entropy"], strict=True)))
    on_front = points[[point in front for point in zip(points[RATE], points["cross_entropy"], strict=True)]]
    on_front = on_front.sort_values(RATE)
    off_front = points.drop(on_front.index)
    for axes, column in ((losses, "cross_entropy"), (metrics, "metric")):
        style = look(index) | ({"markerfacecolor": "white"} if hollow else {})
        axes.plot(on_front[RATE], on_front[column], linewidth=2.0 if index == 0 else 1.4, label=label, **style)
        axes.plot(off_front[RATE], off_front[column], alpha=0.3, **(style | {"markersize": 4, "linestyle": "none"}))
        band = on_front[f"{column}_low"], on_front[f"{column}_high"]
        if len(on_front) > 1:
            axes.fill_between(on_front[RATE], *band, color=style["color"], alpha=0.12, linewidth=0)
        else:
            axes.vlines(on_front[RATE], *band, color=style["color"], alpha=0.4, linewidth=1.4)


def _note(panel: Axes, hidden: int, times: float, floors: pd.DataFrame) -> None:
    """Say in the corner, where no curve should end, what is not drawn."""
    lines = [f"{hidden} points of more than {times:g} times the least cross entropy are not shown"] if hidden else []
    bits = floors.groupby("label", sort=False)[RATE].mean()
    lines += [", ".join(f"{label}: {value:.1f} bits" for label, value in bits.items())] if len(bits) else []
    if lines:
        text, at = "\n".join(lines), panel.transAxes
        panel.text(0.99, 0.98, text, transform=at, ha="right", va="top", fontsize=8, color="0.4", bbox=_BOX)
