"""``rdo inspect`` of plain models whose parameters share memory: files hold one of them, the model has both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import GPT2Config, GPT2LMHeadModel

from rdo_harness import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The report, and what was said beside it."""
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def tied(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["tied_to"] for row in report["tensors"] if row["by_default"] == "tied"}


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_an_output_layer_that_is_the_embedding(folder: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = inspected(folder / file, capsys)
    assert tied(report) == {"lm_head.weight": "transformer.wte.weight"}
    stored = load_file(folder / "model.safetensors")
    assert report["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert sum(row["bytes"] for row in report["tensors"]) == sum(tensor.nbytes for tensor in stored.values())
    assert cli.main(["inspect", str(folder / file)]) == 0
    printed = capsys.readouterr().out
    assert "lm_head.weight" in printed
    assert "tied to transformer.wte.weight" in printed
    assert f"plain safetensors: {len(stored)} tensors" in printed


def test_a_file_of_the_inner_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the first GPT-2s on the hub were saved: names without the prefix of the inner model."""
    file = folder / "model.safetensors"
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}, file)
    assert tied(inspected(folder, capsys)[0]) == {"lm_head.weight": "wte.weight"}


def test_an_output_layer_that_is_stored_as_well_is_coded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}, file)
    report, _ = inspected(folder, capsys)
    assert tied(report) == {}
    assert {row["name"]: row["by_default"] for row in report["tensors"]}["lm_head.weight"] == "coded"


def test_names_in_the_metadata_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.ModuleDict({"inner": torch.nn.Linear(4, 4, bias=False), "outer": torch.nn.Linear(4, 4)})
    model["outer"].weight = model["inner"].weight
    save_model(model, str(tmp_path / "model.safetensors"))
    assert tied(inspected(tmp_path / "model.safetensors", capsys)[0]) == {"outer.weight": "inner.weight"}


def test_a_model_that_transformers_does_not_know(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "architectures": ["MyModel"]}))
    report, beside = inspected(folder, capsys)
    assert tied(report) == {}
    assert len(report["tensors"]) == len(load_file(folder / "model.safetensors"))
    assert beside.startswith("tied tensors are not listed: ")
    assert "config.json" in beside
