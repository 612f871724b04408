"""Every flip and every cut is noticed, and a killed writer leaves a whole file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rdo.checkpoint import load_compressed, open_compressed, save_compressed
from rdo.coders import CODERS, make_coder
from rdo.quantizers import RelativeQuantizer, UniformQuantizer
from tests.fuzz.files import same
from tests.fuzz.run import fuzz

QUANTIZERS = {
    "uniform": UniformQuantizer(step=0.05),
    "tensor": RelativeQuantizer(ratio=0.3, granularity="tensor"),
    "row": RelativeQuantizer(ratio=0.3, granularity="row"),
}
CODED = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RAW = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int8, torch.uint8, torch.bool]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("target", "executions"), [("streams", 20_000), ("files", 800)])
def test_damaged_inputs_give_typed_errors_or_the_right_data(target: str, executions: int) -> None:
    findings = fuzz(target, executions, seed=1, seconds=60)
    assert not findings.found
    assert findings.executions == executions
    assert 0.02 < findings.accepted / executions < 0.6, "the damage reaches what lies behind the first checks"


SHAPES = st.sampled_from([(), (0,), (1,), (97,), (0, 5), (1, 1), (3, 64), (13, 17), (2, 3, 5, 7), (4099,), (5, 0, 2)])


@settings(max_examples=150, deadline=None)
@given(
    coder=st.sampled_from(CODERS.names()),
    quantizer=st.sampled_from(list(QUANTIZERS)),
    dtype=st.sampled_from(CODED + RAW),
    size=SHAPES,
    layout=st.sampled_from(["contiguous", "transposed", "strided", "flipped", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_round_trips(
    coder: str, quantizer: str, dtype: torch.dtype, size: tuple[int, ...], layout: str, seed: int
) -> None:
    tensor = _tensor(size, dtype, layout, seed)
    chosen = QUANTIZERS[quantizer]
    coded = dtype in CODED and tensor.numel() > 0
    expected = chosen.quantize(tensor, "w").dequantize(dtype) if coded else tensor.contiguous()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "w.rdo"
        state = {"w": tensor, "tied": tensor, "::raw": torch.arange(3)}
        options = {"quantizer": chosen, "coder": make_coder(coder), "compressible": lambda name, t: t.dtype in CODED}
        save_compressed(state, path, **options)
        loaded = load_compressed(path)
        assert list(loaded) == ["w", "tied", "::raw"]
        assert same(loaded["w"], expected)
        assert same(loaded["tied"], expected)
        assert torch.equal(loaded["::raw"], torch.arange(3))
        if size and size[0]:
            with open_compressed(path) as file:
                assert same(file.rows("w", size[0] // 2, size[0]), expected[size[0] // 2 :].contiguous())


def _tensor(size: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * 2

    def cast(tensor: Tensor) -> Tensor:
        return tensor > 0 if dtype == torch.bool else tensor.to(dtype)

    if layout == "transposed" and size:
        return cast(values.permute(*reversed(range(values.ndim))).contiguous()).permute(*reversed(range(values.ndim)))
    if layout == "strided" and size:
        return cast(values.repeat_interleave(2, -1))[..., ::2]
    if layout == "flipped" and size:
        return cast(values.flip(-1))  # torch has no views of negative stride
    if layout == "expanded" and size and size[0]:
        return cast(values[:1]).expand(size)
    return cast(values)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed_writer", str(tmp_path), "--random", "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["other"] == 0
    assert report["old"] > 4, "killed before the rename"
    assert report["new"] > 0, "killed after it"
    left = {name for name in os.listdir(tmp_path) if name != "model.rdo"}
    assert left, "a killed writer cannot tidy up"
    assert all(name.startswith(".model.rdo.") and name.endswith(".tmp") for name in left)


def test_a_single_element_may_have_any_stride(tmp_path: Path) -> None:
    tensor = torch.tensor([3, 4])[::2]
    assert tensor.stride() == (2,)
    save_compressed({"w": tensor}, tmp_path / "w.rdo")
    assert load_compressed(tmp_path / "w.rdo")["w"].tolist() == [3]
