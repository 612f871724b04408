"""The Triton kernels without a GPU: in the interpreter against float64, and compiled for real GPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rdo_harness.kernel_checks import CHECKS

triton = pytest.importorskip("triton", reason="triton has no builds for macOS and Windows")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of all checks; the interpreter must be chosen before the kernels are imported, hence the process."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "rdo_harness.kernel_checks", "--backend", "triton", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (0, 1), done.stderr
    results: dict[str, str] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(interpreted: dict[str, str], name: str) -> None:
    assert interpreted[name] == ""


def test_a_family_of_another_package_gets_every_kernel() -> None:
    """With one device function, through all checks, in the interpreter."""
    script = """
import json, torch
from rdo_harness import kernel_checks
from rdo_harness.kernel_checks import samples
from tests.kernels.logistic import Logistic
samples.LAWS[:] = [(Logistic(), [0.02])]
print(json.dumps(kernel_checks.run(torch.device("cpu"), "triton")))
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == dict.fromkeys(CHECKS, "")


@pytest.mark.parametrize("backend", ["blocks", "compiled"])
@pytest.mark.parametrize("name", CHECKS)
def test_the_same_checks_hold_for_the_other_backends(name: str, backend: str) -> None:
    if backend == "compiled":
        backend = None  # which takes 16-bit weights to the blocks
    CHECKS[name](torch.device("cpu"), backend)


def compiled(name: str, target: tuple[str, int | str, int], **constants: object) -> dict[str, object]:
    """Assembly of a kernel, compiled ahead of time for a GPU that need not be here."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rdo_kernels.gpu import kernels

    kernel = getattr(kernels, name)
    types = {"chunks": "*i64", "laws": "*fp32", "partials": "*fp64", "bounds": "*i64", "sums": "*fp64"}
    source = ASTSource(
        kernel,
        signature={argument: types.get(argument, "constexpr") for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, argument in enumerate(kernel.arg_names) if argument in types},
    )
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": 8}).asm


def rate_constants(action: int, aligned: bool = True) -> dict[str, object]:
    from rdo_kernels.device.power import power

    float32 = triton.language.float32
    return {
        "function": power,
        "PARAMETERS": 3,
        "WEIGHT": float32,
        "OTHER": float32,
        "ACTION": action,
        "ALIGNED": aligned,
        "BLOCK": 2048,
    }


NVIDIA = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32)]
AMD = ("hip", "gfx942", 64)


@pytest.mark.parametrize("target", NVIDIA, ids=lambda target: f"sm{target[1]}")
@pytest.mark.parametrize("action", range(5))
def test_full_blocks_load_and_store_sixteen_bytes_at_once(target: tuple[str, int, int], action: int) -> None:
    ptx = str(compiled("rate", target, **rate_constants(action))["ptx"])
    reads_other, writes = action in (1, 4), action > 0
    assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == (4 if reads_other else 2)
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == (2 if writes else 0)
    unaligned = str(compiled("rate", target, **rate_constants(action, aligned=False))["ptx"])
    assert ".v4" not in "".join(re.findall(r"(?:ld|st)\.global\S*", unaligned)), "would fault on misaligned weights"


@pytest.mark.parametrize("action", range(5))
def test_the_power_runs_in_float32_and_only_the_sums_in_float64(action: int) -> None:
    ptx = str(compiled("rate", NVIDIA[1], **rate_constants(action))["ptx"])
    assert not re.findall(r"(?:mul|div|fma|ex2|lg2|sqrt)\S*\.f64", ptx)


@pytest.mark.parametrize("action", range(5))
def test_no_register_spills(action: int, tmp_path: Path) -> None:
    asm = compiled("rate", NVIDIA[1], **rate_constants(action))
    (tmp_path / "kernel.cubin").write_bytes(asm["cubin"])  # type: ignore[arg-type]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True)
    (registers, stack) = re.findall(r"REG:(\d+) STACK:(\d+)", usage.stdout)[0]
    assert int(registers) <= 80
    assert int(stack) == 0
    amdgcn = str(compiled("rate", AMD, **rate_constants(action))["amdgcn"])
    assert re.findall(r"\.vgpr_spill_count:\s*(\d+)", amdgcn) == ["0"]


def test_the_other_kernels_compile() -> None:
    float32 = triton.language.float32
    for target in (*NVIDIA, AMD):
        moments = compiled("moments", target, WEIGHT=float32, ALIGNED=True, BLOCK=2048)
        assert target == AMD or len(re.findall(r"ld\.global\S*\.v4", str(moments["ptx"]))) == 2
        compiled("add_up", target, COLUMNS=4, SUMMED=3)
