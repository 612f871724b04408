"""Hands a job to a worker in the environment of a peer and reads the answer: safetensors and JSON, nothing pickled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rdo_harness.peers.environments import PeerError, clean_environment

_WORKERS = Path(__file__).parent / "workers"
_SHOWN = 2000
"""Characters of a failed worker's messages in an error."""
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Answer:
    """What a worker gave back; see ``workers/peer_job.py``.

    Attributes:
        tensors: changed weights by name, with scales and zero points, and other parameters that changed with them.
        native_bytes: size of the changed weights in the peer's own format.
        seconds: of the work, without start and hand-over.
        versions: of the packages that did it.
        facts: what else the worker said, columns of the row.
    """

    tensors: dict[str, Tensor]
    native_bytes: int
    seconds: float
    versions: dict[str, str]
    facts: dict[str, Any]

    def beside(self, matrices: Collection[str]) -> dict[str, Tensor]:
        """The parameters that changed with these matrices, such as norms and biases."""
        own = {f"{name}{part}" for name in matrices for part in ("", ".scale", ".zero_point")}
        return {name: tensor for name, tensor in self.tensors.items() if name not in own}


def worker_path(worker: str) -> Path:
    """A worker's script by its file name; an absolute path is taken as it is."""
    return _WORKERS / worker


def write_job(
    folder: Path,
    options: Mapping[str, Any],
    matrices: Mapping[str, Tensor],
    calibration: Sequence[Mapping[str, Tensor]],
    seed: int,
) -> None:
    """Write all of a job but the whole model, which the caller saves under ``folder/model`` if it is wanted."""
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in matrices.items()}, str(folder / "weights.safetensors"))
    batches = {
        f"{number}.{name}": tensor.contiguous()
        for number, batch in enumerate(calibration)
        for name, tensor in batch.items()
        if name != "labels"
    }
    save_file(batches, str(folder / "calibration.safetensors"))
    described = {"options": dict(options), "seed": seed, "matrices": list(matrices)}
    (folder / "job.json").write_text(json.dumps(described))


def run_worker(python: Path, worker: str, folder: Path, timeout: float) -> None:
    """Run a worker's script on the job in ``folder``.

    Raises:
        PeerError: it failed, wrote no answer or took longer than ``timeout`` seconds; with the end of what it said.
    """
    log = folder / "log.txt"
    script = worker_path(worker)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), str(script), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment(_QUIET),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{script.name} took longer than {timeout:g} s and was stopped{_said(log)}") from None
        finally:
            _stop(process)
    if code != 0 or not (folder / "answer.json").is_file():
        how = f"failed with exit code {code}" if code else "gave no answer"
        raise PeerError(f"{script.name} {how}{_said(log)}")


def read_answer(folder: Path) -> Answer:
    """Read what a worker wrote."""
    from safetensors.torch import load_file

    try:
        described = json.loads((folder / "answer.json").read_text())
        return Answer(load_file(str(folder / "answer.safetensors")), **described)
    except (OSError, ValueError, TypeError) as error:
        raise PeerError(f"the answer in {folder} cannot be read: {error}") from error


def _said(log: Path) -> str:
    text = log.read_text(errors="replace").strip()
    return f"; its last messages:\n{text[-_SHOWN:]}" if text else "; it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker and what it started, also when we are interrupted ourselves."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
