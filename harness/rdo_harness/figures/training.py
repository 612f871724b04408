"""How trainings went: the shape of the weights' law, the rate and the distortion over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo_harness.figures.style import look, ordered_colours, panels
from rdo_harness.observation import PAPER_STEP
from rdo_harness.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[tuple[str, Row]]
"""Trainings with what the legend calls them."""

_CELLS = 2**14


def by_model(lines: Lines) -> dict[str, list[tuple[str, Row]]]:
    """The lines of every architecture and task, in the order of their looks, which the legend takes over."""
    models: dict[str, list[tuple[str, Row]]] = {}
    order = list(looks(lines))
    for label, training in sorted(lines, key=lambda line: order.index(line[0])):
        models.setdefault(f"{training['architecture']} on {training['task']}", []).append((label, training))
    return models


def looks(lines: Lines) -> dict[str, dict[str, Any]]:
    """The look of each line by its name in the legend, in all panels the same; where all of them are lambdas of one
    method, dark to light by lambda."""
    named = dict(lines)
    normal = [name for name, row in named.items() if row.get("lam") is None]
    rest = [name for name in named if name not in normal]
    settings = {(named[name]["apply"], named[name].get("eps"), named[name].get("regulariser_p")) for name in rest}
    if len(settings) == 1 and len(rest) > 1:
        rest.sort(key=lambda name: float(named[name]["lam"]))
        shades: list[dict[str, Any]] = [{"color": shade} for shade in ordered_colours(len(rest))]
    else:
        shades = [{} for _ in rest]
    return {name: look(0) for name in normal} | {
        name: look(number) | shade for number, (name, shade) in enumerate(zip(rest, shades, strict=True), 1)
    }


def shape_over_steps(lines: Lines) -> Figure:
    """One panel per model: the fitted shape nu over the steps of training."""
    models, styles = by_model(lines), looks(lines)
    rows = -(-len(models) // 2)
    with panels(rows, min(2, len(models)), 3.8) as (figure, grid):
        cells = [panel for row in grid for panel in row]
        for panel, (where, part) in zip(cells, models.items(), strict=False):
            for label, training in part:
                history = training["history"]
                panel.plot(
                    _steps(history), [at["shape"] for at in history], linewidth=1.4, label=label, **styles[label]
                )
            panel.set_xlabel("training step")
            panel.set_ylabel("shape nu of all weights")
            panel.set_title(where)
    return figure


def rate_and_distortion(lines: Lines) -> Figure:
    """A row of two panels per model: the training loss, and the rate that the fitted law implies, over the steps."""
    models, styles = by_model(lines), looks(lines)
    with panels(len(models), 2, 4.0) as (figure, grid):
        for (distortion, rate), (where, part) in zip(grid, models.items(), strict=True):
            for label, training in part:
                history = training["history"]
                steps = _steps(history)
                distortion.plot(steps, [at["loss"] for at in history], linewidth=1.4, label=label, **styles[label])
                bits = [implied_rate(at["shape"], at["scale"]) for at in history]
                rate.plot(steps, bits, linewidth=1.4, label=label, **styles[label])
            for panel in (distortion, rate):
                panel.set_xlabel("training step")
            distortion.set_ylabel("training loss of one batch (nats)")
            distortion.set_title(f"{where}: distortion")
            rate.set_ylabel("entropy of the fitted law at step $2^{-8}$\n(bits per parameter)")
            rate.set_title("rate")
    return figure


def implied_rate(shape: float, scale: float, step: float = PAPER_STEP) -> float:
    """Entropy in bits of a generalized Gaussian rounded to a step: what ideal codes of its weights would take."""
    symbols = torch.arange(_CELLS)
    bits = GeneralizedGaussian().interval_bits(symbols, step, torch.tensor([shape, scale], dtype=torch.float64))
    mass = torch.exp2(-bits) * torch.where(symbols == 0, 1.0, 2.0)
    return float((mass * bits).sum())


def _steps(history: Sequence[dict[str, float]]) -> list[float]:
    return [at["step"] for at in history]
