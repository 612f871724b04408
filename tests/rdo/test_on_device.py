"""Tensors that a GPU decodes: in Triton's interpreter here, and how they are shared out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rdo.checkpoint import load_compressed, on_device, open_compressed, save_compressed
from rdo.errors import ConfigError
from tests import decoding_on_gpu


def test_the_kernels_give_the_bytes_of_the_cpu() -> None:
    pytest.importorskip("triton", reason="triton has no builds for macOS and Windows")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-m", "tests.decoding_on_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == f"{decoding_on_gpu.TOLD}\n", done.stderr


def test_neighbours_share_a_launch_up_to_a_number_of_weights() -> None:
    together = on_device._TOGETHER
    sizes = {"a": 1, "b": together - 1, "c": 1, "d": 2 * together, "e": 3}
    assert list(on_device.batches(sizes)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(on_device.batches({})) == []


def test_other_devices_get_what_the_cpu_decoded(tmp_path: Path) -> None:
    """Meta stands for any device that is no GPU of ours."""
    path = tmp_path / "model.rdo"
    save_compressed({"w": torch.ones(8, 64), "bias": torch.ones(3)}, path)
    done: list[int] = []
    loaded = load_compressed(path, device="meta", progress=done.append)
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in loaded.items()} == {
        "w": ("meta", (8, 64)),
        "bias": ("meta", (3,)),
    }
    assert sum(done) == 515
    with open_compressed(path) as file:
        assert file.tensor("w", device="meta").device.type == "meta"
        assert file.tensor("w", device="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device 'gpu'"):
        load_compressed(path, device="gpu")
