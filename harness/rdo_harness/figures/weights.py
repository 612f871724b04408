"""What trained weights look like: histograms with the laws that fit them, and zeros over the depth of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdo.entropy.gaussian import Gaussian
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.laplace import Laplace
from rdo.entropy.shape import log_scale
from rdo_harness.figures.style import COLOURS, panels
from rdo_harness.figures.training import Lines, by_model, looks
from rdo_harness.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAWS = {"generalized Gaussian": (COLOURS[2], "-"), "Laplace": (COLOURS[1], "--"), "Gaussian": (COLOURS[6], ":")}
_COLUMNS = 3


def fitted_laws(trainings: Sequence[Row]) -> Figure:
    """One panel for each of these trainings: the density of its weights and of three laws fitted to them."""
    rows = -(-len(trainings) // _COLUMNS)
    with panels(rows, min(_COLUMNS, len(trainings)), 3.6) as (figure, grid):
        cells = [panel for row in grid for panel in row]
        for panel, training in zip(cells, trainings, strict=False):
            edges, density = _density(training)
            rms = training["histogram"]["rms"]
            panel.stairs(density * rms, edges / rms, fill=True, color="0.8", label="weights")
            centres = (edges[1:] + edges[:-1]) / 2
            for name, law in _fitted(training, edges).items():
                colour, line = _LAWS[name]
                panel.plot(centres / rms, law * rms, color=colour, linestyle=line, linewidth=1.5, label=name)
            panel.set_yscale("log")
            panel.set_ylim(0.3 * _least(density) * rms, 3 * density.max() * rms)
            panel.set_xlabel("weight / root mean square")
            panel.set_ylabel("density (log axis)")
            panel.set_title(f"{training['architecture']}: nu = {training['shape']:.2f}")
    return figure


def histograms(lines: Lines) -> Figure:
    """One panel per model: the density of the weights after each training, one line for each."""
    models, styles = by_model(lines), looks(lines)
    with panels(len(models), 1, 4.2) as (figure, grid):
        for [panel], (where, part) in zip(grid, models.items(), strict=True):
            for label, training in part:
                edges, density = _density(training)
                panel.stairs(density, edges, baseline=None, linewidth=1.5, color=styles[label]["color"], label=label)
            least = min(_least(_density(training)[1]) for _, training in part)
            panel.set_yscale("log")
            panel.set_ylim(bottom=0.5 * least)
            panel.set_xlabel("weight")
            panel.set_ylabel("density (log axis)")
            panel.set_title(f"{where}: weights of all matrices after training")
    return figure


def sparsity_over_depth(lines: Lines) -> Figure:
    """One panel per model: the share of each layer's weights that rounding to the step 2^-8 makes zero."""
    models, styles = by_model(lines), looks(lines)
    rows = -(-len(models) // 2)
    with panels(rows, min(2, len(models)), 3.8) as (figure, grid):
        cells = [panel for row in grid for panel in row]
        for panel, (where, part) in zip(cells, models.items(), strict=False):
            names: list[str] = []
            for label, training in part:
                depth = layer_sparsity(training["layers"])
                names = list(depth)
                shares = [100 * share for share in depth.values()]
                panel.plot(range(len(depth)), shares, linewidth=1.4, label=label, **styles[label])
            every = max(1, len(names) // 8)
            shown = [i for i, name in enumerate(names) if not name.isdecimal() or int(name) % every == 0]
            panel.set_xticks(shown, [names[i] for i in shown])
            panel.set_ylim(-3, 103)
            panel.set_xlabel("layer")
            panel.set_ylabel("zeros at step $2^{-8}$ (%)")
            panel.set_title(where)
    return figure


def layer_sparsity(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of zeros of every layer: what comes before the numbered ones ("in"), these, and what follows ("out")."""
    zeros: dict[str, list[int]] = {}
    numbered = False
    for layer in layers:
        number = re.search(r"\.(\d+)\.", layer["name"])
        numbered = numbered or number is not None
        depth = number.group(1) if number else "out" if numbered else "in"
        total = zeros.setdefault(depth, [0, 0])
        total[0] += layer["zeros"]
        total[1] += layer["weights"]
    return {depth: zero / weights for depth, (zero, weights) in zeros.items()}


def _density(training: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the histogram's cells and the density in each, NaN where no weight is."""
    histogram = training["histogram"]
    counts = np.array(histogram["counts"], dtype=np.float64)
    edges = np.linspace(-histogram["reach"], histogram["reach"], len(counts) + 1)
    density = counts / (histogram["weights"] * np.diff(edges))
    return edges, np.where(counts > 0, density, 0.0)


def _least(density: NDArray[np.float64]) -> float:
    return float(density[density > 0].min(initial=density.max()))


def _fitted(training: Row, edges: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Mean density of each law in every cell: each law has those moments of the weights that it can have."""
    rms = training["histogram"]["rms"]
    shape = torch.tensor(training["shape"], dtype=torch.float64)
    scale = rms * float(log_scale(shape).exp())
    mean_magnitude = scale * float(torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape)))
    thetas = {
        "generalized Gaussian": (GeneralizedGaussian(), [float(shape), scale]),
        "Laplace": (Laplace(), [mean_magnitude]),
        "Gaussian": (Gaussian(), [rms]),
    }
    bounds = torch.tensor(edges)
    return {
        name: np.diff(law.cdf(bounds, torch.tensor(theta, dtype=torch.float64)).numpy()) / np.diff(edges)
        for name, (law, theta) in thetas.items()
    }
