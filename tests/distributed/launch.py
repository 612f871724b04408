"""Starting the workers of the tests of sharded training, and reading what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def launch(worker: str, out: Path, counts: Sequence[int] = (1, 3, 2), timeout_s: int = 600) -> None:
    """Run all scenarios of a worker: on one process, on three, and on two, which resume what three have saved."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count in counts:
        launcher = [sys.executable] if count == 1 else [*torchrun, str(count)]
        command = [*launcher, str(Path(__file__).with_name(worker)), str(out)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, cwd=ROOT)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-8000:]


def read(results: Path, name: str) -> dict[str, Any]:
    """What rank 0 found in a scenario."""
    found: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return found
