"""On which device from_pretrained decodes, and what it decodes together. The CPU plays a GPU here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import rdo.integrations.transformers  # noqa: F401
from rdo.checkpoint import CompressedFile, on_device
from rdo.integrations import stored
from tests.integrations.hub_folders import compress, deepseek, llama, save

pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 asks for tensors on the CPU")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of tensors that a GPU was given together."""
    given: list[list[str]] = []

    def tensors_on(
        file: CompressedFile, names: Sequence[str], dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        assert (dtype, device) == (None, torch.device("cpu"))
        given.append(list(names))
        return on_device.tensors_on(file, names, dtype, device)

    monkeypatch.setattr(stored, "decodes_on", lambda device: device.type == "cpu")
    monkeypatch.setattr(stored, "tensors_on", tensors_on)
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_decoded_together_where_parameters_are(
    dtype: torch.dtype, launches: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    monkeypatch.setattr(on_device, "_TOGETHER", 40_000)
    found = AutoModelForCausalLM.from_pretrained(small, dtype=dtype).state_dict()
    monkeypatch.undo()
    expected = AutoModelForCausalLM.from_pretrained(small, dtype=dtype).state_dict()
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(expected, dtype)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert sorted(name for names in launches for name in names) == sorted(expected), "each of them once"
    assert 2 < len(launches) < len(expected) / 3


def test_experts_of_a_model_are_decoded_once(launches: list[list[str]], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(compress(save(deepseek(), tmp_path / "model")))
    names = [name for names in launches for name in names]
    assert len(names) == len(set(names))
    assert sum(".experts." in name for name in names) == 2 * 8 * 3
