"""Whole processes, started anew: what a user waits for."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from asv_bench.arms import SHORT, figure

IMPORT = "import time, torch; started = time.process_time(); import {}; print(1e3 * (time.process_time() - started))"
SHORT_SUITE = """
[suite]
name = "short"
description = "proves that a suite runs"
task = "wikitext2-bytes"
task_options = { evaluation_bytes = 1024 }
architectures = ["gpt-small"]
seeds = [0]

[training]
steps = 2
batch_size = 2
learning_rate = 1e-3

[[methods]]
name = "rtn"
steps = ["2^-5"]
"""


class Import:
    """Processor time of an import once torch is there, median of fresh processes."""

    version = 1
    timeout = 300
    param_names = ("module",)
    params = (["rdo"] if SHORT else ["rdo", "rdo.optim", "rdo.checkpoint", "rdo_harness.cli"],)

    @figure("ms")
    def track_milliseconds(self, module: str) -> float:
        command = [sys.executable, "-c", IMPORT.format(module)]
        taken = []
        for _ in range(1 if SHORT else 5):
            done = subprocess.run(command, capture_output=True, text=True)
            if "ModuleNotFoundError" in done.stderr:
                raise NotImplementedError(f"not in this commit: {module}")
            done.check_returncode()
            taken.append(float(done.stdout))
        return statistics.median(taken)


class Quickstart:
    """Seconds of ``rdo run quickstart`` on the wall, all threads, its data already there; ten minutes on two cores."""

    version = 1
    timeout = 7200

    @figure("s")
    def track_seconds(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            suite = "quickstart"
            if SHORT:
                suite = str(Path(folder) / "short.toml")
                Path(suite).write_text(SHORT_SUITE)
            command = [sys.executable, "-m", "rdo_harness.cli", "run", suite, "--out", folder]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started
