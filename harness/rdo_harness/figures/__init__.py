"""Figures of a report: what to draw for which suite. The only modules of the harness that import matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from rdo_harness.figures import sweeps, training, weights
from rdo_harness.figures.rate_distortion import rate_distortion
from rdo_harness.figures.style import Drawn, save
from rdo_harness.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "draw", "rate_distortion", "save"]

_MOST_LINES = 8
"""Trainings that one panel may show: as many as there are colours."""

_CAPTIONS = {
    "": "Rate and distortion: lines join the best points of each method; bands are 95 % intervals, over seeds where "
    "there are several, over test items where there is one (of more than eight methods, those have no band). Methods "
    "share the test items: their differences are surer than bands that overlap suggest. Hollow markers: fewer seeds "
    "than others have. Where there are several, what normal training of a seed differs by from their mean is "
    "taken off.",
    "ablations": "The method that the suite is about, and the same with something taken away or exchanged; else as the "
    "figure of all methods.",
    "laws": "Histograms of the weights of all matrices after normal training, and the laws fitted to them by their "
    "moments.",
    "weights": "Histograms of the weights of all matrices after each training.",
    "shape": "Shape nu of the generalized Gaussian fitted to all matrices, over the steps of training (2 is Gaussian, "
    "1 is Laplace).",
    "rate": "Distortion (loss of the batch at that step) and rate (entropy of the fitted law) over the steps.",
    "sparsity": "Zeros over depth: share of the weights of each layer that rounding to the step 2^-8 makes zero; 'in' "
    "are the embeddings, 'out' what follows the last layer.",
    "lambda": "Bits and quality over lambda at the step 2^-8; the band is the 95 % interval.",
    "steps": "Quality over the quantisation step; bands are 95 % intervals.",
    "pruning": "Quality over pruning without further training, then rounded to 2^-8; bands are 95 % intervals.",
}


def draw(
    frame: pd.DataFrame,
    labels: Sequence[str],
    trainings: Sequence[Row],
    paper: str = "",
    subject: str = "",
    ablations: Sequence[str] = (),
) -> list[Drawn]:
    """The figures of a suite, its main one first.

    Args:
        frame: rows without errors, with the bits under the best coder.
        labels: of the methods, the anchor first.
        trainings: rows of :mod:`rdo_harness.trainings`; without them there are no figures of weights and steps.
        paper: the table or figure of the paper that the suite repeats.
        subject: label of the method that the suite is about.
        ablations: labels of that method with something taken away, which have a figure of their own.
    """
    lines = _lines(frame, trainings)
    normal = [row for _, row in lines if row.get("lam") is None]
    # The paper has one form of its method: the rate in the gradient.
    gradient = [line for line in lines if line[1].get("lam") is None or line[1].get("apply") == "gradient"]
    golomb = {"EG0": "exp_golomb_k0_bits_per_parameter", "EG best k": "exp_golomb_bits_per_parameter"}
    huffman = {"Huffman": "huffman_bits_per_parameter", "entropy": "entropy_bits_per_parameter"}
    of_rows: dict[str, tuple[str, Callable[[], Figure]]] = {
        "fig4": ("lambda", lambda: sweeps.over_lambda(frame, golomb)),
        "fig5": ("lambda", lambda: sweeps.over_lambda(frame, huffman)),
        "fig7": ("steps", lambda: sweeps.over_steps(frame, labels)),
        "fig8": ("pruning", lambda: sweeps.over_pruning(frame, labels)),
    }
    of_trainings: dict[str, tuple[str, Callable[[], Figure]]] = {
        "fig1": ("laws", lambda: weights.fitted_laws(normal)),
        "fig2": ("rate", lambda: training.rate_and_distortion(gradient)),
        "fig3": ("shape", lambda: training.shape_over_steps(gradient)),
        "fig6": ("weights", lambda: weights.histograms(gradient)),
    }
    if paper in of_rows | of_trainings:
        caption, drawing = (of_rows | of_trainings)[paper]
        return [Drawn("", _CAPTIONS[caption], drawing())] if paper in of_rows or normal else []
    if paper == "table3":  # of coders alone
        return []
    # What is left of a method is told by the method beside it; without that it is one of several.
    apart = list(ablations) if subject in labels else []
    methods = [label for label in labels if label not in apart]
    drawn = [Drawn("", _CAPTIONS[""], rate_distortion(frame, methods, subject))]
    if frame["label"].isin(apart).any():
        anchor = [label for label in labels[:1] if label not in (subject, *apart)]
        figure = rate_distortion(frame, [*anchor, subject, *apart], subject, hidden=anchor)
        drawn.append(Drawn("ablations", _CAPTIONS["ablations"], figure))
    if normal and paper in ("", "table4"):
        drawn += [
            Drawn("sparsity", _CAPTIONS["sparsity"], weights.sparsity_over_depth(lines)),
            Drawn("shape", _CAPTIONS["shape"], training.shape_over_steps(lines)),
        ]
    if normal and not paper:
        drawn.append(Drawn("weights", _CAPTIONS["laws"], weights.fitted_laws(normal)))
    return drawn


def _lines(frame: pd.DataFrame, trainings: Sequence[Row]) -> training.Lines:
    """Trainings of the first seed with what the legend calls them; of each method one, where a model has too many."""
    if "training_key" not in frame:
        return []
    named = frame.drop_duplicates("training_key")  # pruned points share the training of those before them
    labels = dict(zip(named["training_key"], named["label"], strict=True))
    first = min((row["seed"] for row in trainings), default=0)
    models: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in trainings:
        if row["seed"] == first and row["training_key"] in labels:
            of_model = models.setdefault((row["architecture"], row["task"]), {})
            of_model.setdefault(labels[row["training_key"]], []).append(row)
    lines = []
    for by_label in models.values():
        if sum(map(len, by_label.values())) > _MOST_LINES:
            by_label = {label: [_middle(label, rows, models.values())] for label, rows in by_label.items()}
        lines += [(_called(row, label), row) for label, rows in by_label.items() for row in rows]
    return lines


def _middle(label: str, rows: Sequence[Row], models: Collection[Mapping[str, Sequence[Row]]]) -> Row:
    """Of a method's trainings the one in the middle of those that all models have, so that panels can be compared."""
    settings = [{_called(row, label) for row in model[label]} for model in models if label in model]
    shared = [row for row in rows if _called(row, label) in set.intersection(*settings)] or list(rows)
    shared.sort(key=lambda row: row.get("bits") or row.get("lam") or 0.0)
    return shared[len(shared) // 2]


def _called(row: Row, label: str) -> str:
    if row.get("lam") is None:
        return "normal training"
    return f"{label}, {row['bits']:g} bits" if row.get("bits") else f"{label}, lambda {row['lam']:g}"
