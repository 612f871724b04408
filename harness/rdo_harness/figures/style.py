"""What all figures share: colours that any eye can tell apart, the look of a panel, the legend, the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with any colour vision; markers repeat the distinction.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
REFERENCE: dict[str, Any] = {"color": "0.5", "linewidth": 0.8, "linestyle": ":"}
_WIDTH = 11.0
_RC: Any = {"font.size": 10, "svg.fonttype": "path", "axes.titlesize": 11, "svg.hashsalt": "rdo"}


@dataclass(frozen=True)
class Drawn:
    """A figure with what a reader must know of it; ``name`` is added to the suite's, "" for its main figure."""

    name: str
    caption: str
    figure: Figure


def look(index: int) -> dict[str, Any]:
    """Colour, marker and kind of the line with this number; the colours' second round is dashed, with other markers."""
    turn, colour = divmod(index, len(COLOURS))
    marker = MARKERS[(colour + 3 * turn) % len(MARKERS)]
    return {"color": COLOURS[colour], "marker": marker, "markersize": 5, "linestyle": ("-", "--", ":")[turn % 3]}


def ordered_colours(count: int) -> list[str]:
    """Colours from dark to light for values of one quantity, such as lambda; of Matplotlib's viridis."""
    from matplotlib.colors import to_hex

    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, max(count, 1)))
    return [to_hex(colour) for colour in colours]


@contextmanager
def panels(rows: int, columns: int, height: float = 4.4) -> Iterator[tuple[Figure, list[list[Axes]]]]:
    """A figure as wide as the README; on leaving, every panel gets its grid and the figure its legend."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(_WIDTH, height * rows + 0.5), layout="constrained")
        grid = [list(row) for row in figure.subplots(rows, columns, squeeze=False)]
        yield figure, grid
        named: dict[str, Any] = {}
        for panel in (panel for row in grid for panel in row):
            if not panel.has_data():
                panel.set_axis_off()
                continue
            panel.grid(alpha=0.25, linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
                named.setdefault(name, handle)
        widest = max((len(name) for name in named), default=1)
        beside = min(4, int(_WIDTH / (0.071 * widest + 0.65)), len(named)) or 1  # inches of a letter and of a line
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=beside, frameon=False)


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.svg`` and ``name.png`` and return the SVG's text."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=130)
    return (folder / f"{name}.svg").read_text(encoding="utf-8")


def fit_to(panel: Axes, values: Sequence[float]) -> None:
    """Fit the panel's height to these values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.01
    panel.set_ylim(low - margin, high + margin)


def log_height(panel: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panel.set_yscale("log")
    panel.yaxis.set_minor_formatter(ScalarFormatter())
    panel.yaxis.set_major_formatter(ScalarFormatter())
    if panel.get_ylim()[1] > 10.0 * panel.get_ylim()[0]:
        panel.yaxis.set_minor_formatter(NullFormatter())
