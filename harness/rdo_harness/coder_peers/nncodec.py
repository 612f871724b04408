"""The CABAC of NNCodec (MPEG-7 part 17, Neural Network Coding) in an environment of its own."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rdo.errors import RdoError
from rdo_harness.coder_peers.base import LENGTH_BYTES, PEERS, Clock, Matrix, Peer, Trip, check_same

PYTHON = "RDO_NNCODEC_PYTHON"
"""Environment variable: the Python of the environment that NNCodec is installed in."""
INSTALL = "python3.11 -m venv ENV && ENV/bin/pip install 'numpy<2' torch==2.15.0 torchvision==0.29.2 nncodec==2.1.3"
_SCRIPT = Path(__file__).parent / "nncodec_process.py"


class PeerProcessError(RdoError):
    """The process that runs a peer failed."""


@PEERS.register("nncodec")
@dataclass(frozen=True)
class NNCodec(Peer):
    """NNCodec on integer tensors, which it does not quantise: no step, no dependent quantisation, CABAC alone.

    Encoding includes its search for the context models' parameters, on by default there.
    """

    name: ClassVar[str] = "nncodec"
    requirement: ClassVar[str | None] = "nncodec==2.1.3"
    parameter_search: bool = True

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls(), cls(parameter_search=False)]

    @property
    def label(self) -> str:
        return f"nncodec CABAC{'' if self.parameter_search else ' no-search'}"

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for number, matrix in enumerate(matrices):
                rows = matrix.symbols.reshape(-1, matrix.row_length)
                np.save(folder / f"{number}.npy", rows)
            request = {"folder": temporary, "tensors": len(matrices), "parameter_search": self.parameter_search}
            answer = _ask(_process(os.environ[PYTHON]), request)
            decoded = [np.load(folder / f"{number}-decoded.npy").reshape(-1) for number in range(len(matrices))]
        check_same(self.label, matrices, decoded)
        nbytes = answer["nbytes"] + LENGTH_BYTES * len(matrices)
        return Trip(nbytes, packing, Clock(*answer["encode"]), Clock(*answer["decode"]))

    @classmethod
    def missing(cls) -> str | None:
        if not os.environ.get(PYTHON):
            return (
                f"nncodec needs an environment of its own (numpy below 2, a C++ compiler): {INSTALL}; "
                f"then set {PYTHON}=ENV/bin/python"
            )
        try:
            _process(os.environ[PYTHON])
        except (OSError, PeerProcessError) as error:
            return f"nncodec does not run under {PYTHON} ({error}): {INSTALL}"
        return None

    @classmethod
    def version(cls) -> str:
        return str(_ask(_process(os.environ[PYTHON]), {"version": True})["version"])


@cache
def _process(python: str) -> subprocess.Popen[str]:
    """One process for all requests: its imports take seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [python, "-P", str(_SCRIPT)],  # -P: the script's neighbours are not modules of that environment
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    atexit.register(process.kill)
    _ask(process, {"version": True})
    return process


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it says why on its standard error
    line = process.stdout.readline()
    if not line:
        raise PeerProcessError(f"the process ended with exit code {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise PeerProcessError(str(answer["error"]))
    return answer
