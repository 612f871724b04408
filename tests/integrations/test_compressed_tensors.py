"""Exports to compressed-tensors: that package and transformers are the judges of what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rdo.integrations.transformers  # noqa: F401
from rdo import RelativeQuantizer, save_compressed
from rdo.checkpoint import load_quantized
from rdo_harness import cli
from tests.integrations.hub_folders import IDS, compress, deepseek, gpt2, llama, recompress_by_channels, save

pytest.importorskip("compressed_tensors")


def run_export(small: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Path, dict[str, Any]]:
    out = small.with_name(f"{small.name}-ct")
    capsys.readouterr()
    assert cli.main(["export", str(small), str(out), "--format", "compressed-tensors", "--json", *options]) == 0
    return out, json.loads(capsys.readouterr().out)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that transformers runs with, and the logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        logits = model(input_ids=IDS).logits  # compressed-tensors decodes at the first call
    return {**dict(model.named_parameters()), "logits": logits}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        (("--relative-step", "0.7"), 4),
        (("--relative-step", "0.7", "--granularity", "row"), 4),
        (("--relative-step", "0.1", "--granularity", "row"), 8),
    ],
)
def test_float32_weights_are_the_decoded_ones(
    options: tuple[str, ...], bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = compress(save(llama(), tmp_path / "model"), *options)
    out, report = run_export(small, capsys)
    assert set(report["quantised"].values()) == {bits}
    assert len(report["quantised"]) == 14
    assert report["plain"].keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    assert report["largest_change"] == 0.0
    assert report["file_bytes"] == (out / "model.safetensors").stat().st_size
    found, expected = loaded(out), loaded(small)
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        if name != "logits":
            assert torch.equal(found[name], tensor), name
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-5)  # sums depend on addresses


def test_bfloat16_rounds_the_scales_as_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = compress(save(llama().to(torch.bfloat16), tmp_path / "model"), "--relative-step", "0.5")
    out, report = run_export(small, capsys)
    assert 0 < report["largest_change"] <= 2**-8
    found, quantized = loaded(out), load_quantized(small / "model.rdo")[0]
    for name in report["quantised"]:
        exact = quantized[name].symbols.double() * quantized[name].steps.double()
        scaled = quantized[name].symbols.to(torch.bfloat16) * quantized[name].steps.to(torch.bfloat16)
        assert torch.equal(found[name], scaled), name
        change = (found[name].double() - exact).abs()
        assert (change <= (report["largest_change"] + 2**-8) * exact.abs() * 1.001).all()


def test_too_many_levels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = compress(save(llama(), tmp_path / "model"), "--relative-step", "0.01")
    out = small.with_name("out")
    arguments = ["export", str(small), str(out), "--format", "compressed-tensors"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    quantized = load_quantized(small / "model.rdo")[0]["model.layers.0.mlp.down_proj.weight"].symbols
    levels = int(quantized.max()) - int(quantized.min()) + 1
    assert f"tensor 'model.layers.0.mlp.down_proj.weight' has {levels:,} levels" in error
    assert "8 bits hold 256 (-128 to 127)" in error
    assert not out.exists()
    assert cli.main([*arguments, "--allow-plain"]) == 2
    assert "no linear layer is quantised; `rdo decompress`" in capsys.readouterr().err


def test_what_does_not_fit_is_plain_if_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(llama(), tmp_path / "model")
    small = compress(folder, "--relative-step", "0.7")
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    fine = "model.layers.1.mlp.up_proj.weight"

    class Mixed(RelativeQuantizer):
        def steps(self, weight: torch.Tensor, name: str = "tensor") -> torch.Tensor:
            return super().steps(weight, name) * (0.01 if name == fine else 1.0)

    save_compressed(state, small / "model.rdo", quantizer=Mixed(ratio=0.7))
    out, report = run_export(small, capsys, "--allow-plain")
    assert fine not in report["quantised"]
    assert "levels" in report["plain"][fine]
    assert len(report["quantised"]) == 13
    found, expected = loaded(out), loaded(small)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if name != "logits")


def test_steps_of_rows_stay_and_columns_become_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The matrix of the queries is square: as many columns as it has rows."""
    small = compress(save(llama(), tmp_path / "model"))
    queries, keys = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")
    recompress_by_channels(small, {queries: "columns", keys: "rows"})
    out, report = run_export(small, capsys)
    assert report["plain"][queries].startswith("its columns have each a step")
    assert keys in report["quantised"]
    assert len(report["quantised"]) == 13
    found, expected = loaded(out), loaded(small)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if name != "logits")
    recompress_by_channels(small, dict.fromkeys([*report["quantised"], queries], "columns"))
    arguments = ["export", str(small), str(tmp_path / "out"), "--format", "compressed-tensors"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "no linear layer is quantised; `rdo decompress` writes plain weights (model.layers.0" in error
    assert "its columns have each a step" in error


def test_models_that_it_is_not_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What transformers holds as one tensor for all experts is no linear layer; GPT-2 has none at all."""
    for model, error in (
        (deepseek(), "no parameter 'model.layers.1.mlp.experts"),
        (gpt2(), "no linear layer is quant"),
    ):
        small = compress(save(model, tmp_path / type(model).__name__), "--relative-step", "0.3")
        assert cli.main(["export", str(small), str(tmp_path / "out"), "--format", "compressed-tensors"]) == 2
        assert error in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_misuse_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = save(llama(), tmp_path / "model")
    assert cli.main(["export", str(plain), str(tmp_path / "out"), "--format", "compressed-tensors"]) == 2
    assert "expected a compressed model folder" in capsys.readouterr().err
    small = compress(plain, "--relative-step", "0.5")
    assert cli.main(["export", str(small), str(plain), "--format", "compressed-tensors"]) == 2
    assert "--force" in capsys.readouterr().err
