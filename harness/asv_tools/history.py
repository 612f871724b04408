"""Figures of earlier commits from results/asv, for clones that do not have the commit itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asv.machine import Machine
from asv.results import Results, iter_results_for_machine
from asv.util import load_json

from asv_tools.commits import is_ancestor
from asv_tools.figures import Figure


@dataclass(frozen=True)
class Record:
    """A figure's value at a commit, on a machine named as in results/asv."""

    value: float
    commit: str
    machine: str


def newest(folder: Path, root: Path, figures: Sequence[Figure]) -> dict[Figure, Record]:
    """The newest value on record of each figure; ratios of times only from hardware like this.

    Values of commits that HEAD is known to descend from come first; a clone without history knows of none.
    """
    here = Machine.get_defaults()
    found: dict[Figure, tuple[tuple[bool, int], Record]] = {}
    for path in sorted(folder.glob("*/machine.json")):
        machine = load_json(str(path), Machine.api_version)
        same_hardware = (machine["cpu"], machine["num_cpu"]) == (here["cpu"], here["num_cpu"])
        comparable = [figure for figure in figures if same_hardware or figure.gate != "ratio"]
        for results in iter_results_for_machine(str(folder), path.parent.name):
            order = (is_ancestor(root, results.commit_hash), results.date)
            for figure, value in _values(results, comparable):
                if figure not in found or order > found[figure][0]:
                    found[figure] = (order, Record(value, results.commit_hash, path.parent.name))
    return {figure: record for figure, (_, record) in found.items()}


def _values(results: Results, figures: Sequence[Figure]) -> Iterator[tuple[Figure, float]]:
    recorded = set(results.get_all_result_keys())
    for figure in figures:
        if figure.benchmark not in recorded:
            continue
        axes = results.get_result_params(figure.benchmark)
        wanted = [[repr(value), value] for value in figure.settings]  # words are recorded with their quotes
        places = [
            [place for place, value in enumerate(axis) if value in names]
            for axis, names in zip(axes, wanted, strict=False)
        ]
        if len(axes) != len(wanted) or not all(places):
            continue
        index = 0
        for axis, (place, *_) in zip(axes, places, strict=True):
            index = index * len(axis) + place
        value = results.get_result_value(figure.benchmark, axes)[index]
        if value is not None and math.isfinite(value):
            yield figure, float(value)
