"""The two sides of a comparison: the package at a path, measured in a process of its own by today's benchmarks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from asv_tools.figures import Figure

WORKER = Path(__file__).with_name("worker.py")


class Side:
    """Measures one version of the package.

    Args:
        root: a checkout of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.errors: dict[Figure, str] = {}
        """Why figures are missing that the benchmarks failed to give."""
        self._process: subprocess.Popen[str] | None = None

    def measure(self, figure: Figure) -> float:
        """The figure, or NaN if this version does not have what it is of, or fails at it."""
        if self._process is None:
            self._process = self._started()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        reply = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(figure.identifier + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if not reply:
            self.restart()
            self.errors[figure] = "the process that measured it ended"
            return math.nan
        value, error = json.loads(reply)
        if error:
            self.errors[figure] = error
        return math.nan if value is None else float(value)

    def restart(self) -> None:
        """End the process; the next figure gets a new one, with its memory laid out anew."""
        if self._process is not None:
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        sources = os.pathsep.join(str(self.root / folder) for folder in (".", "kernels", "harness"))
        environment = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", str(WORKER), str(self.root)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=self.root
        )
