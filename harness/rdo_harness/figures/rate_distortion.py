"""Rate-distortion curves with confidence bands."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from rdo_harness.figures.bands import levelled, lossless, over_seeds
from rdo_harness.figures.style import REFERENCE, fit_to, look, panels
from rdo_harness.metrics import metric_title, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_TEXT = ("bits_per_byte", "perplexity")
RATE = "best_coder_bits_per_parameter"
_NOTE_SIZE = 8.0
"""Points of a note's letters."""
_MOST_BANDS = 8
"""So many methods have bands that can still be told apart: as many as there are colours."""


def rate_distortion(
    frame: pd.DataFrame, labels: Sequence[str], subject: str = "", hidden: Collection[str] = ()
) -> Figure:
    """Cross entropy over bits per parameter for every task and architecture, and the task's metric beside it.

    The bits per byte of text are its cross entropy in another unit, and on the right of the same panel. Lines join the
    Pareto front of each method, of means over seeds; points off the front are faint. Bands are 95 % intervals, over
    seeds or, where there is one seed, over test items; of more than eight methods, those of one seed have none. Markers
    are hollow where a method was measured with fewer seeds than others; seeds are levelled by their normal training.
    The panels are cut where a model is of no more use: at twice the least cross entropy, and at 1.25 times for text, of
    which most cannot be predicted. How many points that leaves out stands under the title; so do lossless methods,
    which have five times the bits of the others and the quality of the uncompressed model.

    Args:
        labels: of the methods that are shown; the first is the anchor.
        subject: the method that the suite is about; its line and the anchor's are thicker.
        hidden: labels whose lines are left out all the same.
    """
    layout: list[tuple[pd.DataFrame, dict[str, pd.DataFrame], str, float] | None] = []
    for _, model in frame.groupby(["task", "architecture"], sort=False):
        model = levelled(model)
        anchor, group = model[model["label"] == labels[0]], model[model["label"].isin(set(labels) - set(hidden))]
        if group.empty:
            continue
        columns = ["cross_entropy"] if group["metric_name"].iloc[0] == "bits_per_byte" else ["cross_entropy", "metric"]
        layout += [None] * (len(layout) % 2 if len(columns) == 2 else 0)  # both in one row
        lossy = group[~lossless(group)]
        points = {label: over_seeds(lossy[lossy["label"] == label]) for label in labels if label in set(lossy["label"])}
        layout += [(group, points, column, float(anchor[f"uncompressed_{column}"].mean())) for column in columns]
    with panels(-(-len(layout) // 2), min(2, len(layout))) as (figure, grid):
        for panel, place in zip((panel for row in grid for panel in row), layout, strict=False):
            if place is not None:
                _draw(panel, *place, labels, subject)
    return figure


def _draw(
    panel: Axes,
    whole: pd.DataFrame,
    points: dict[str, pd.DataFrame],
    column: str,
    reference: float,
    labels: Sequence[str],
    subject: str,
) -> None:
    group = whole[~lossless(whole)]
    seeds, metric_name = group.groupby("label")["seed"].nunique(), str(whole["metric_name"].iloc[0])
    for label, part in points.items():
        style = look(labels.index(label)) | ({"markerfacecolor": "white"} if seeds[label] < seeds.max() else {})
        bands = seeds[label] > 1 or len(points) <= _MOST_BANDS
        style |= {"linewidth": 2.4, "zorder": 3} if label in (labels[0], subject) else {"linewidth": 1.3}
        _curve(panel, part, column, label, style, bands=bands)
    if math.isfinite(reference):
        panel.axhline(reference, label="uncompressed, normal training", **REFERENCE)
    times = 1.25 if metric_name in _OF_TEXT else 2.0
    most = times * group["cross_entropy"].min()
    shown = group[group["cross_entropy"] <= most]
    singles = [part for part in points.values() if len(part) == 1 and part["cross_entropy"].iloc[0] <= most]
    ends = [float(part[f"{column}{end}"].iloc[0]) for part in singles for end in ("_low", "_high")]
    fit_to(panel, [value for value in (*shown[column], reference, *ends) if math.isfinite(value)])
    pad = _note(panel, len(group) - len(shown), times, whole[lossless(whole)])
    panel.set_xlabel("bits per coded parameter, best coder, tables and scales included")
    panel.set_ylabel("test cross entropy (nats)" if column == "cross_entropy" else f"test {metric_title(metric_name)}")
    if column == "metric":
        panel.set_title(metric_title(metric_name), pad=pad)
        return
    count = whole["seed"].nunique()
    panel.set_title(
        f"{whole['architecture'].iloc[0]} on {whole['task'].iloc[0]}, {count} seed{'s' if count > 1 else ''}: lower "
        "left is better",
        pad=pad,
    )
    if metric_name == "bits_per_byte":
        bits = float((group["metric"] / group["cross_entropy"]).median())
        there_and_back: Any = (lambda nats: nats * bits, lambda value: value / bits)
        other = panel.secondary_yaxis("right", functions=there_and_back)
        other.set_ylabel(f"test {metric_title(metric_name)}")


def _curve(panel: Axes, points: pd.DataFrame, column: str, label: str, style: dict[str, Any], *, bands: bool) -> None:
    front = pareto_front(list(zip(points[RATE], points["cross_entropy"], strict=True)))
    on_front = points[[point in front for point in zip(points[RATE], points["cross_entropy"], strict=True)]]
    on_front = on_front.sort_values(RATE)
    off_front = points.drop(on_front.index)
    panel.plot(on_front[RATE], on_front[column], label=label, **style)
    panel.plot(off_front[RATE], off_front[column], alpha=0.3, **(style | {"markersize": 4, "linestyle": "none"}))
    band = on_front[f"{column}_low"], on_front[f"{column}_high"]
    if bands and len(on_front) > 1:
        panel.fill_between(on_front[RATE], *band, color=style["color"], alpha=0.12, linewidth=0)
    elif bands:
        panel.vlines(on_front[RATE], *band, color=style["color"], alpha=0.4, linewidth=1.4)


def _note(panel: Axes, hidden: int, times: float, floors: pd.DataFrame) -> float:
    """Say under the title, where no curve is, what is not drawn; returns the points that the title needs below it."""
    left_out = "1 point is" if hidden == 1 else f"{hidden} points are"
    lines = [f"{left_out} not shown, of more than {times:g} times the least cross entropy"] if hidden else []
    bits = floors.groupby("label", sort=False)[RATE].mean()
    lines += [", ".join(f"{label}: {value:.1f} bits" for label, value in bits.items())] if len(bits) else []
    style: Any = {"ha": "center", "va": "bottom", "fontsize": _NOTE_SIZE, "color": "0.4"}
    if lines:
        panel.text(0.5, 1.01, "\n".join(lines), transform=panel.transAxes, **style)
    return 6.0 + 1.25 * _NOTE_SIZE * len(lines)
