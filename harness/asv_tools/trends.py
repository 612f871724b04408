"""``python -m asv_tools.trends``: figures of how the records in results/asv moved, for docs/performance.md."""

from __future__ import annotations

import math
import subprocess
import sys
from ast import literal_eval
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from asv.results import iter_results_for_machine

from asv_tools.figures import ROOT

RESULTS, FIGURES = ROOT / "results" / "asv", ROOT / "results" / "figures"


@dataclass(frozen=True)
class Trend:
    """One figure: every setting of a benchmark that is named is a line.

    Attributes:
        relative: whether lines show percent of their newest value, which the legend then has in brackets.
        ratio: whether values are shares of a reference, which are drawn on a logarithmic axis with a line at 1.
    """

    name: str
    benchmark: str
    axis: str
    lines: tuple[tuple[str, ...], ...]
    relative: bool = False
    ratio: bool = False


TRENDS = (
    Trend(
        "asv-decode",
        "coders.AgainstPeers.track_decode",
        "decoding time / zstd -1",
        (("rans", "zstd"), ("huffman", "zstd"), ("exp_golomb", "zstd"), ("fixed_length", "zstd")),
        ratio=True,
    ),
    Trend(
        "asv-files",
        "files.Files.track_bytes",
        "file size, % of the newest",
        (("rans",), ("rans, step by row",), ("rans, fine step",), ("huffman",), ("exp_golomb",), ("fixed_length",)),
        relative=True,
    ),
    Trend(
        "asv-bits",
        "compression.ShortTraining.track_bits",
        "bits per parameter, % of the newest",
        (("RTN",), ("BackSlash",)),
        relative=True,
    ),
    Trend(
        "asv-kernels",
        "kernels.BySize.track_ratio",
        "time / torch, 1M weights",
        tuple(
            (name, "1000000")
            for name in ("moments", "gradient", "preconditioned proximal step", "AdamW + rate", "quantise + histogram")
        ),
        ratio=True,
    ),
)


def values(machine: str, benchmark: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By commit, oldest first, the benchmark's value at each setting."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for results in sorted(iter_results_for_machine(str(RESULTS), machine), key=lambda results: results.date):
        if benchmark not in results.get_all_result_keys():
            continue
        axes = results.get_result_params(benchmark)
        for setting, value in zip(product(*axes), results.get_result_value(benchmark, axes), strict=True):
            if value is not None and math.isfinite(value):
                words = tuple(str(literal_eval(word)) for word in setting)
                found.setdefault(results.commit_hash, {})[words] = value
    return found


def draw(trend: Trend, machine: str) -> Path | None:
    """Write a figure as PNG; None without two commits."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    recorded = values(machine, trend.benchmark)
    order = [commit for commit in _commits() if commit in recorded]
    if len(order) < 2:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    colours = plt.get_cmap("viridis")
    for number, (setting, marker) in enumerate(zip(trend.lines, "os^Dvx*", strict=False)):
        points = [
            (place, recorded[commit][setting]) for place, commit in enumerate(order) if setting in recorded[commit]
        ]
        if not points:
            continue
        scale = 100 / points[-1][1] if trend.relative else 1.0
        colour = colours(0.9 * number / max(len(trend.lines) - 1, 1))
        places, heights = zip(*((place, scale * value) for place, value in points), strict=True)
        label = f"{setting[0]} ({points[-1][1]:,.6g})" if trend.relative else setting[0]
        axes.plot(places, heights, marker=marker, color=colour, label=label, linewidth=1.3, markersize=5)
    if trend.ratio:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(order)), [commit[:8] for commit in order], rotation=60, ha="right", fontsize=8)
    axes.set_xlabel(f"commit, oldest first; machine {machine}; smaller is better")
    axes.set_ylabel(trend.axis)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    path = FIGURES / f"{trend.name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _commits() -> list[str]:
    """All commits, oldest first, in git's order."""
    command = ["git", "-C", str(ROOT), "log", "--reverse", "--topo-order", "--format=%H", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def main() -> int:
    for machine in sys.argv[1:]:
        for trend in TRENDS:
            print(draw(trend, machine) or f"{trend.benchmark}: fewer than two commits on {machine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
