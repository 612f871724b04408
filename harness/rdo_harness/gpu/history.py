"""Writes what the command measured where asv keeps its history, so that machines with a GPU have one, too.

Names, parameters and versions are those of ``harness/asv_bench/gpu.py``; a test compares them. The files are asv's own
format (version 2), written without asv, which a machine borrowed for its GPU may lack.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rdo_harness.gpu.rate import sizes_of

VERSION = "1"
"""Of the benchmarks' meaning."""
WORKLOADS = ("llama-3.2-1b", "gpt2", "5000-small")
_COLUMNS = ["result", "params", "version"]

Rows = dict[str, dict[tuple[str, ...], float]]
"""Benchmark, parameters, figure; the smaller the better."""


def add_rows(content: Mapping[str, Any], folder: Path) -> Path | None:
    """Add the figures of one run, as it is written to results/gpu, to ``folder``/MACHINE; None if it has no commit.

    An earlier run of the same commit on the same machine is replaced.
    """
    commit = content["commit"]
    if not re.fullmatch("[0-9a-f]{40}", commit):
        return None
    machine = re.sub("[^a-z0-9_.]+", "-", content["device"].lower())
    python = ".".join(content["python_version"].split(".")[:2])
    about = {"machine": machine, "os": "", "arch": "", "cpu": content["device"], "num_cpu": "", "ram": ""}
    target = folder / machine
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "machine.json", {**about, "version": 1})
    path = target / f"{commit[:8]}-existing-py{python}.json"
    results = {benchmark: _result(values) for benchmark, values in rows(content).items()}
    file = {
        "commit_hash": commit,
        "env_name": f"existing-py{python}",
        "date": _commit_date(commit, content["date"]),
        "params": {**about, "python": python},
        "python": python,
        "requirements": {},
        "env_vars": {},
        "result_columns": _COLUMNS,
        "results": results,
        "durations": {},
        "version": 2,
    }
    _write(path, file)
    return path


def rows(content: Mapping[str, Any]) -> Rows:
    """The figures of a run by benchmark and parameters."""
    found: Rows = {}

    def add(benchmark: str, parameters: Sequence[str], value: float | None) -> None:
        if value is not None:
            found.setdefault(benchmark, {})[tuple(parameters)] = value

    for timing in content["timings"]:
        parameters = f"{timing['operation']} / {timing['reference']}", workload(timing["weights"], timing["tensors"])
        extra = timing["extra_bytes"]
        add("gpu.Kernels.track_milliseconds", parameters, timing["milliseconds"])
        add("gpu.Kernels.track_ratio", parameters, timing["milliseconds"] / timing["reference_milliseconds"])
        add("gpu.Kernels.track_missing_bandwidth", parameters, 100 * (1 - timing["share"]))
        add("gpu.Kernels.track_memory", parameters, None if extra is None else extra / timing["weights"])
    for timing in content["decoding"]:
        decoder = (timing["operation"],)
        add("gpu.Decoding.track_nanoseconds", decoder, 1e6 * timing["milliseconds"] / timing["symbols"])
        add("gpu.Decoding.track_missing_bandwidth", decoder, 100 * (1 - timing["share"]))
    return found


def workload(weights: int, tensors: int) -> str:
    """The name of a workload by its size."""
    for name in WORKLOADS:
        sizes = sizes_of(name)
        if (sum(sizes), len(sizes)) == (weights, tensors):
            return name
    return str(weights)


def _result(values: Mapping[tuple[str, ...], float]) -> list[Any]:
    """asv's columns: figures in the order of the product of the axes, and the axes as Python literals."""
    axes = [list(dict.fromkeys(axis)) for axis in zip(*values, strict=True)]
    order: list[tuple[str, ...]] = [()]
    for axis in axes:
        order = [(*begun, value) for begun in order for value in axis]
    return [
        [values.get(parameters) for parameters in order],
        [[repr(value) for value in axis] for axis in axes],
        VERSION,
    ]


def _commit_date(commit: str, measured: str) -> int:
    """In milliseconds; that of the measurement where git cannot tell."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "show", "-s", "--format=%ct", commit]
        return 1000 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return round(1000 * datetime.fromisoformat(measured).replace(tzinfo=UTC).timestamp())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
