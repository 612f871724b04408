"""What needs a process of its own: transformers without our import, without transformers, and the peak of memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rdo.checkpoint import inspect_compressed
from tests.integrations.hub_folders import compress, llama, save


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_without_the_import_nothing_is_loaded(tmp_path: Path) -> None:
    """Not random weights, which is what transformers makes of a quantisation that it does not know."""
    small = compress(save(llama(), tmp_path / "model"))
    script = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); print('loaded')"
    run = python(script, small)
    assert run.returncode == 1
    assert "loaded" not in run.stdout
    assert re.search("OSError: Error no file named .*model.safetensors", run.stderr)
    assert "Unknown quantization type, got rdo" in run.stderr
    run = python("import rdo.integrations.transformers; " + script, small)
    assert (run.returncode, run.stdout) == (0, "loaded\n"), run.stderr
    assert "Unknown quantization" not in run.stderr


def test_without_transformers_the_import_says_what_to_install() -> None:
    run = python("import sys; sys.modules['transformers'] = None; import rdo.integrations.transformers")
    assert run.returncode == 1
    assert "rdo.errors.IntegrationError" in run.stderr.splitlines()[-1]
    assert "Tested are transformers" in run.stderr.splitlines()[-1]


PEAK = """
import sys, torch, rdo.integrations.transformers
from transformers import AutoModelForCausalLM

def status(key):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))

small, large = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(small)  # compiles the loops and fills the caches of transformers
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
before = status("VmRSS")
model = AutoModelForCausalLM.from_pretrained(large, dtype=torch.float32)
print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()), max(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read as Linux tells it")
def test_a_model_is_never_in_memory_twice(tmp_path: Path) -> None:
    options = {"hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 2048}
    large = compress(save(llama(**options), tmp_path / "large"), "--step", "2^-4")
    small = compress(save(llama(), tmp_path / "small"))
    run = python(PEAK, small, large)
    assert run.returncode == 0, run.stderr
    peak, model, _ = map(int, run.stdout.split())
    assert 100e6 < model == 4 * inspect_compressed(large / "model.rdo").parameters
    # Decoding threads hold pieces of symbols, and some tensors of the pool of transformers are on their way.
    assert 0.9 * model < peak < model + 64e6
