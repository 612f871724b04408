"""The figures of asv_bench, which of them CI compares, and how much worse each of those may become."""

from __future__ import annotations

import itertools
import math
import sys
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

from asv_runner._aux import update_sys_path
from asv_runner.benchmarks._base import Benchmark
from asv_runner.discovery import disc_benchmarks

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "harness" / "asv_bench"
LIMITS = {"ratio": 1.10, "bytes": 1.001, "bits": 1.03}
"""After over before, at most: of times over those of a reference, of sizes, of bits after a training."""


@dataclass(frozen=True)
class Figure:
    """One benchmark at one setting of its parameters.

    Attributes:
        benchmark: asv's name of it.
        index: of the setting, as asv counts them; None without parameters.
        settings: the values of its parameters, in words.
        gate: what CI compares it as, a key of :data:`LIMITS`, or None.
    """

    benchmark: str
    index: int | None
    settings: tuple[str, ...]
    unit: str
    gate: str | None

    @property
    def identifier(self) -> str:
        """What asv's runner takes."""
        return self.benchmark if self.index is None else f"{self.benchmark}-{self.index}"

    @property
    def label(self) -> str:
        """The name in tables and in the file of overrides."""
        return f"{self.benchmark} ({', '.join(self.settings)})" if self.settings else self.benchmark

    @property
    def limit(self) -> float:
        """What after over before may be."""
        return LIMITS[self.gate] if self.gate else math.inf


def benchmarks() -> list[Benchmark]:
    """Those of asv_bench, as asv finds them. Its importer goes again: pytest would ask it what it does not know."""
    importers = list(sys.meta_path)
    update_sys_path(str(BENCHMARKS))
    try:
        return list(disc_benchmarks(str(BENCHMARKS)))
    finally:
        sys.meta_path[:] = importers


def every() -> list[Figure]:
    """All figures that asv knows, at every setting."""
    found = []
    for benchmark in benchmarks():
        gate, kept = getattr(benchmark.func, "gate", None), getattr(benchmark.func, "gate_only", {})
        for index, values in enumerate(itertools.product(*benchmark.params)):
            literals = [literal_eval(value) for value in values]
            settings = dict(zip(benchmark.param_names, literals, strict=False))
            compared = gate if all(settings[name] == value for name, value in kept.items()) else None
            place, words = index if values else None, tuple(map(str, literals))
            found.append(Figure(benchmark.name, place, words, benchmark.unit, compared))
    return found


def gated() -> list[Figure]:
    """Those that CI compares."""
    return [figure for figure in every() if figure.gate is not None]
