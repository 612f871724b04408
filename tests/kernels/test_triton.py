"""The Triton kernels without a GPU: in the interpreter against float64, and compiled for real GPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    """With one device function, through all checks that involve a law, in the interpreter."""
    script = """
import json, torch
from rdo_harness import kernel_checks
from rdo_harness.kernel_checks import samples
from tests.kernels.logistic import Logistic
samples.LAWS[:] = [(Logistic(), [0.02])]
for name in [name for name, check in samples.CHECKS.items() if not check.__module__.endswith((".rate", ".adamw"))]:
    del samples.CHECKS[name]
print(json.dumps(kernel_checks.run(torch.device("cpu"), "triton")))
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    results = json.loads(done.stdout)
    assert len(results) >= 10
    assert not any(results.values()), results


@pytest.mark.parametrize("backend", ["blocks", "compiled"])
@pytest.mark.parametrize("name", CHECKS)
def test_the_same_checks_hold_for_the_other_backends(name: str, backend: str) -> None:
    if backend == "compiled":
        backend = None  # which takes 16-bit weights to the blocks
    CHECKS[name](torch.device("cpu"), backend)


TYPES = {
    "chunks": "*i64", "addresses": "*i64", "bounds": "*i64", "members": "*i64",
    "stepped": "*i64",
    "laws": "*fp32", "factors": "*fp32", "steps": "*fp32", "loss_scale": "*fp32", "overflow": "*fp32",
    "partials": "*fp64", "sums": "*fp64", "counts": "*fp64", "controls": "*fp64", "strength": "*fp64",
    "options": "*fp64", "fitted": "*fp64", "total": "*fp64", "alarms": "*i32",
    "first": "i32", "tensors": "i32", "rows": "i32",
}  # fmt: skip
NVIDIA = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32)]
AMD = ("hip", "gfx942", 64)
each_nvidia = pytest.mark.parametrize("target", NVIDIA, ids=lambda target: f"sm{target[1]}")


def compiled(kernel: Any, target: tuple[str, int | str, int], constants: dict[str, object], warps: int = 8) -> Any:
    """Assembly of a kernel, compiled ahead of time for a GPU that need not be here."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    pointers = [name for name in names if TYPES.get(name, "").startswith("*")]
    source = ASTSource(
        kernel,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": warps}).asm


def rate_constants(action: int, aligned: bool = True) -> dict[str, object]:
    from rdo_kernels.device.power import power

    float32 = triton.language.float32
    types = {"WEIGHT": float32, "OTHER": float32}
    return {"function": power, "PARAMETERS": 3, **types, "ACTION": action, "ALIGNED": aligned, "BLOCK": 1024}


def adamw_constants(action: int, aligned: bool = True, master: bool = False) -> dict[str, object]:
    """A float32 model, or a bfloat16 model with float32 master weights."""
    from rdo_kernels.device.power import power

    float32, own = triton.language.float32, triton.language.bfloat16 if master else triton.language.float32
    types = {"WEIGHT": float32, "GRADIENT": own, "FIRST": float32, "SECOND": float32, "COPY": own}
    rest = {"GROUPS": 5 if master else 4, "ACTION": action, "ALIGNED": aligned, "BLOCK": 1024}
    return {"function": power, "PARAMETERS": 3, **types, **rest}


def prepare_constants(pooled: bool, tensors: int) -> dict[str, object]:
    from rdo_kernels.device.power import fit_generalized_gaussian

    rest = {"FOLLOWS": 2, "STRENGTHS": False, "TENSORS": tensors}
    return {"fit": fit_generalized_gaussian, "PARAMETERS": 3, "POOLED": pooled, **rest}


def resources(asm: Any, folder: Path) -> tuple[int, int]:
    """Registers and bytes of stack of a kernel for NVIDIA."""
    (folder / "kernel.cubin").write_bytes(asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True)
    (registers, stack) = re.findall(r"REG:(\d+) STACK:(\d+)", usage.stdout)[0]
    return int(registers), int(stack)


def spills(asm: Any) -> list[str]:
    return re.findall(r"\.vgpr_spill_count:\s*(\d+)", str(asm["amdgcn"]))


@each_nvidia
@pytest.mark.parametrize("action", range(5))
def test_full_blocks_load_and_store_sixteen_bytes_at_once(target: tuple[str, int, int], action: int) -> None:
    from rdo_kernels.gpu.kernels import rate

    ptx = str(compiled(rate, target, rate_constants(action))["ptx"])
    reads_other, writes = action in (1, 4), action > 0
    assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == (2 if reads_other else 1)
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == (1 if writes else 0)
    unaligned = str(compiled(rate, target, rate_constants(action, aligned=False))["ptx"])
    assert ".v4" not in "".join(re.findall(r"(?:ld|st)\.global\S*", unaligned)), "would fault on misaligned weights"


@pytest.mark.parametrize("action", range(5))
def test_the_power_runs_in_float32_and_only_the_sums_in_float64(action: int) -> None:
    from rdo_kernels.gpu.kernels import rate

    ptx = str(compiled(rate, NVIDIA[1], rate_constants(action))["ptx"])
    assert not re.findall(r"(?:div|ex2|lg2|sqrt)\S*\.f64", ptx)
    assert bool(re.findall(r"(?:mul|fma)\S*\.f64", ptx)) == (action >= 2)  # of the sum of squares


@pytest.mark.parametrize("action", range(5))
def test_no_register_spills(action: int, tmp_path: Path) -> None:
    from rdo_kernels.gpu.kernels import rate

    registers, stack = resources(compiled(rate, NVIDIA[1], rate_constants(action)), tmp_path)
    assert registers <= 64
    assert stack == 0
    assert spills(compiled(rate, AMD, rate_constants(action))) == ["0"]


@each_nvidia
@pytest.mark.parametrize("master", [False, True], ids=["float32", "master"])
@pytest.mark.parametrize("action", range(4))
def test_adamw_moves_its_floor_sixteen_bytes_at_a_time(
    target: tuple[str, int, int], action: int, master: bool, tmp_path: Path
) -> None:
    """Per thread four float32 of each: four loads and three stores, or eight bytes where the model is bfloat16."""
    from rdo_kernels.gpu.adamw import adamw

    asm = compiled(adamw, target, adamw_constants(action, master=master))
    ptx = str(asm["ptx"])
    assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == (3 if master else 4)
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == 3
    registers, stack = resources(asm, tmp_path)
    assert registers <= 80
    assert stack == 0


@pytest.mark.parametrize("master", [False, True], ids=["float32", "master"])
def test_adamw_compiles_for_amd_without_spills(master: bool) -> None:
    from rdo_kernels.gpu.adamw import adamw

    assert spills(compiled(adamw, AMD, adamw_constants(3, master=master))) == ["0"]


@pytest.mark.parametrize("tensors", [1, 2, 64])
@pytest.mark.parametrize("pooled", [True, False])
def test_the_preparation_of_all_tensors_compiles(pooled: bool, tensors: int, tmp_path: Path) -> None:
    from rdo_kernels.gpu.prepare import prepare

    for target in NVIDIA:
        assert resources(compiled(prepare, target, prepare_constants(pooled, tensors)), tmp_path)[1] == 0
    assert spills(compiled(prepare, AMD, prepare_constants(pooled, tensors))) == ["0"]


def test_the_other_kernels_compile() -> None:
    from rdo_kernels.gpu import kernels

    constants = {"WEIGHT": triton.language.float32, "ALIGNED": True, "BLOCK": 1024}
    for target in (*NVIDIA, AMD):
        moments = compiled(kernels.moments, target, constants)
        assert target == AMD or len(re.findall(r"ld\.global\S*\.v4", str(moments["ptx"]))) == 1
        compiled(kernels.add_up, target, {"COLUMNS": 4, "SUMMED": 3})


@each_nvidia
def test_keeping_and_rounding_moves_its_floor_sixteen_bytes_at_a_time(
    target: tuple[str, int, int], tmp_path: Path
) -> None:
    """A load and two stores; no division but the step's reciprocal, before the loop."""
    from rdo_kernels.gpu.grid import keep_and_round_kernel

    constants = {"WEIGHT": triton.language.float32, "FUSED": True, "ALIGNED": True, "BLOCK": 1024, "CHANNELS": False}
    asm = compiled(keep_and_round_kernel, target, constants)
    ptx = str(asm["ptx"])
    assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == 1
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == 2
    assert len(re.findall(r"div\.rn\.f32", ptx)) == 1
    registers, stack = resources(asm, tmp_path)
    assert registers <= 64
    assert stack == 0
    assert spills(compiled(keep_and_round_kernel, AMD, constants)) == ["0"]
    registers, stack = resources(compiled(keep_and_round_kernel, target, {**constants, "CHANNELS": True}), tmp_path)
    assert registers <= 96
    assert stack == 0
    unaligned = str(compiled(keep_and_round_kernel, target, {**constants, "ALIGNED": False})["ptx"])
    assert ".v4" not in "".join(re.findall(r"(?:ld|st)\.global\S*", unaligned)), "would fault on misaligned weights"


def test_tensors_of_more_than_two_to_the_31_weights() -> None:
    """The last chunks of a tensor of 2^32 + 5 bfloat16, of which the system gives no memory but the pages touched."""
    script = """
import numpy as np, torch
from rdo_kernels import chunks
from rdo_kernels.gpu import kernels, launch
count = 2**32 + 5
weight = torch.empty(count, dtype=torch.bfloat16)
weight[-70_000:] = torch.linspace(-1, 1, 70_000).bfloat16()
table = chunks.chunk_table((count,))
assert table[:, 0].sum() == count and table[-1].tolist() == [5, 0, 2**32], table[-1]
rows = torch.from_numpy(table[-2:].copy())
sums = torch.full((2, 4), float("nan"), dtype=torch.float64)
places = launch.addresses([weight])
kernels.moments[(2,)](rows, places.table, sums, 0, kernels.TYPES[torch.bfloat16], places.aligned, 65_536)
tail = weight[-65_541:].double().abs()
expected = torch.stack([tail[:65_536].sum(), tail[65_536:].sum()])
torch.testing.assert_close(sums[:, 0], expected, rtol=1e-12, atol=0)
print("right")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "right", done.stderr
