"""The examples run, on tiny inputs, and leave what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rdo

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    "pytorch": (["--steps", "3"], "model.rdo"),
    "trainer": (["--examples", "200"], "trainer-example-rdo/model.rdo"),
    "fsdp2": (["--steps", "2"], "fsdp2-example/model.rdo"),
    "lora": (["--steps", "2"], "merged.rdo"),
    "gpt": ([str(ROOT / "README.md"), "--steps", "22"], "gpt.rdo"),
}


def test_there_are_no_others() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    arguments, file = EXAMPLES[name]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if name == "fsdp2" else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, str(ROOT / f"examples/{name}.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert rdo.verify_compressed(tmp_path / file).sound
