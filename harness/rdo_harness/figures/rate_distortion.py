"""Rate-distortion figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from rdo_harness.metrics import metric_title, pareto_front

# Okabe & Ito's palette, told apart with any colour vision; markers repeat the distinction.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
RATE = "best_coder_bits_per_parameter"


def rate_distortion(frame: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """One row of two panels per task and architecture: cross entropy and the task's metric over bits per parameter.

    Lines join the Pareto front of each method, one line for each seed; points off the front are faint. The panels are
    cut where a model is destroyed, and say how many points that leaves out. The first label is the anchor.
    """
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "svg.fonttype": "path", "axes.titlesize": 11, "svg.hashsalt": "rdo"}):
        groups = list(frame.groupby(["task", "architecture"], sort=False))
        figure = Figure(figsize=(11, 4.4 * len(groups) + 0.5), layout="constrained")
        axes = figure.subplots(len(groups), 2, squeeze=False)
        for row, ((task, architecture), group) in enumerate(groups):
            losses, metrics = axes[row]
            for index, label in enumerate(labels):
                for seed, curve in group[group["label"] == label].groupby("seed"):
                    first = seed == group["seed"].min()
                    _draw(losses, metrics, curve, index, label if first else "_")
            anchor = group[group["label"] == labels[0]]
            shown = group[group["cross_entropy"] <= 2.0 * group["cross_entropy"].min()]
            for panel, column in ((losses, "cross_entropy"), (metrics, "metric")):
                reference = float(anchor[f"uncompressed_{column}"].mean())
                if math.isfinite(reference):
                    style = {"color": "0.5", "linewidth": 0.8, "linestyle": ":"}
                    panel.axhline(reference, label="uncompressed, normal training", **style)
                _crop(panel, shown[column], reference, len(group))
            metric = str(group["metric_name"].iloc[0])
            losses.set_ylabel("test cross entropy (nats)")
            metrics.set_ylabel(f"test {metric_title(metric)}")
            seeds = group["seed"].nunique()
            losses.set_title(f"{architecture} on {task}, {seeds} seed{'s' if seeds > 1 else ''}: lower left is better")
            metrics.set_title(metric_title(metric))
            for panel in (losses, metrics):
                panel.set_xlabel("bits per coded parameter, best coder, tables and scales included")
                panel.grid(alpha=0.25, linewidth=0.6)
                panel.spines[["top", "right"]].set_visible(False)
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.svg`` and ``name.png`` and return the SVG's text."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=130)
    return (folder / f"{name}.svg").read_text(encoding="utf-8")


def _draw(losses: Axes, metrics: Axes, curve: pd.DataFrame, index: int, label: str) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    front = pareto_front(list(zip(curve[RATE], curve["cross_entropy"], strict=True)))
    on_front = curve[[point in front for point in zip(curve[RATE], curve["cross_entropy"], strict=True)]]
    on_front = on_front.sort_values(RATE)
    off_front = curve.drop(on_front.index)
    width = 2.0 if index == 0 else 1.4
    for axes, column in ((losses, "cross_entropy"), (metrics, "metric")):
        axes.plot(
            on_front[RATE], on_front[column], color=colour, marker=marker, markersize=5, linewidth=width, label=label
        )
        axes.plot(off_front[RATE], off_front[column], color=colour, marker=marker, markersize=4, linewidth=0, alpha=0.3)


def _crop(panel: Axes, values: pd.Series[float], reference: float, total: int) -> None:
    """Fit the panel to these values and the reference; say how many of the points that leaves out."""
    shown = [float(values.min()), float(values.max()), *([reference] if math.isfinite(reference) else [])]
    margin = 0.06 * (max(shown) - min(shown)) or 0.01
    panel.set_ylim(min(shown) - margin, max(shown) + margin)
    hidden = total - len(values)
    if hidden:
        text = f"{hidden} points of more than twice the least cross entropy are not shown"
        panel.text(0.99, 0.98, text, transform=panel.transAxes, ha="right", va="top", fontsize=8, color="0.4")
