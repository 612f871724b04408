"""Peak memory, and where and with what a number was measured."""

from __future__ import annotations

import contextlib
import datetime
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system can (Linux); elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Peak resident memory since :func:`reset_peak_memory`; of the GPU's allocator where there is a GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def provenance() -> dict[str, Any]:
    """Commit, versions, device and date of a measurement, as columns of a row."""
    commit, dirty = code_version()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


@cache
def code_version() -> tuple[str, bool]:
    """The commit of the checkout that this code runs from and whether its code differs; the version if installed.

    As of the first call of the process: what is checked out while a training runs is not what trains.
    """
    folder = Path(__file__).resolve().parent
    code = ["rdo", "kernels", "harness"]
    try:
        root = _git(folder, "rev-parse", "--show-toplevel")
        if not (Path(root) / "rdo" / "constraint.py").exists():
            raise FileNotFoundError(root)
        commit = _git(Path(root), "rev-parse", "HEAD")
        return commit, bool(_git(Path(root), "status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        import rdo

        return f"version {rdo.__version__}", False


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
