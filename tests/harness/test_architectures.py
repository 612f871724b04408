"""Architectures: seeded, causal where they should be, and never silently without their pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rdo.errors import ConfigError, DataError
from rdo_harness.architectures import minilm
from rdo_harness.architectures.minilm import MiniLM
from rdo_harness.registries import ARCHITECTURES, TASKS

TREC, BYTES = TASKS.get("trec")(), TASKS.get("wikitext2-bytes")()
CAUSAL = ["gpt-small", "llama-small", "gemma-small", "deepseek-small"]


@pytest.mark.parametrize("name", CAUSAL)
def test_small_models_have_a_million_weights_and_follow_the_seed(name: str) -> None:
    architecture = ARCHITECTURES.get(name)()
    state = torch.get_rng_state()
    one, same, other = (architecture.build(seed, BYTES) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in one.parameters()) >= 1_000_000
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.training
    assert {p.dtype for p in one.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", CAUSAL)
def test_no_byte_sees_a_later_one(name: str) -> None:
    architecture = ARCHITECTURES.get(name)()
    model = architecture.build(0, BYTES).eval()
    ids = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 256
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, model(input_ids=changed).logits
    assert before.shape == (2, 20, 256)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
def test_matrices_are_compressible_and_norms_and_biases_are_not(name: str) -> None:
    architecture = ARCHITECTURES.get(name)()
    model = architecture.build(0, BYTES)
    taken = {key for key, p in model.named_parameters() if architecture.compressible(key, p)}
    left = {key for key, _ in model.named_parameters()} - taken
    assert all(key.endswith("weight") or ".experts." in key for key in taken)
    assert any("emb" in key or "wte" in key for key in taken)
    assert all("norm" in key or "ln_" in key or key.endswith("bias") for key in left)


def test_small_architectures_are_what_their_names_say() -> None:
    """DeepSeek has experts, packed into three axes, and latent attention; GPT and Gemma tie the output layer."""
    parameters = {name: dict(ARCHITECTURES.get(name)().build(0, BYTES).named_parameters()) for name in CAUSAL}
    deepseek = parameters["deepseek-small"]
    packed = {name: tuple(p.shape) for name, p in deepseek.items() if p.ndim == 3}
    assert packed["model.layers.1.mlp.experts.gate_up_proj"] == (8, 256, 192)
    assert len(packed) == 4, "the first layer is dense"
    assert deepseek["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (64 + 16, 192)
    for name, tied in (("gpt-small", True), ("llama-small", False), ("gemma-small", True), ("deepseek-small", False)):
        assert ("lm_head.weight" not in parameters[name]) == tied
        assert all(0.02 < float(p.detach().std()) < 0.12 for p in parameters[name].values() if p.ndim > 1), name


def test_bytes_are_tokens() -> None:
    architecture = ARCHITECTURES.get("gpt-small")(max_length=5)
    assert architecture.encode(["aé", "longer than five"]) == [[97, 195, 169], list(b"longe")]


@pytest.fixture
def tiny_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like MiniLM's, of a BERT small enough for a test."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(tmp_path)
    words = {"[PAD]": 0, "[UNK]": 1, "who": 2, "what": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(minilm, "_verified_directory", lambda source: tmp_path)
    return tmp_path


def test_minilm_loads_its_weights_and_seeds_only_the_head(tiny_minilm: Path) -> None:
    from safetensors.torch import load_file

    one, same, other = (MiniLM().build(seed, TREC) for seed in (1, 1, 2))
    for key, saved in load_file(tiny_minilm / "model.safetensors").items():
        assert torch.equal(one.state_dict()[f"bert.{key}"], saved)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.classifier.weight.shape == (6, 16)
    assert one.training


def test_minilm_encodes_without_padding_and_cuts(tiny_minilm: Path) -> None:
    assert MiniLM(max_length=3).encode(["who knows", "what what what what"]) == [[2, 1], [3, 3, 3]]


@pytest.mark.parametrize("change", ["missing", "unexpected", "size"])
def test_weights_that_do_not_fit_are_refused(tiny_minilm: Path, change: str) -> None:
    """transformers would fill the gaps with random weights and go on."""
    from safetensors.torch import load_file, save_file

    state: dict[str, Any] = load_file(tiny_minilm / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        state["encoder.layer.1.adapter.weight"] = torch.zeros(2, 2)
    else:
        config = json.loads((tiny_minilm / "config.json").read_text())
        (tiny_minilm / "config.json").write_text(json.dumps({**config, "vocab_size": 21}))
    save_file(state, tiny_minilm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="the MiniLM weights do not fit"):
        MiniLM().build(0, TREC)


def test_minilm_refuses_a_causal_task() -> None:
    with pytest.raises(ConfigError, match="architecture 'minilm' of kind 'classification'"):
        MiniLM().build(0, BYTES)


@pytest.mark.slow
def test_the_real_minilm() -> None:
    architecture = MiniLM()
    model = architecture.build(0, TREC)
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 22_715_526
    covered = sum(p.numel() for key, p in parameters.items() if architecture.compressible(key, p))
    assert covered / 22_715_526 > 0.99
    assert architecture.encode(["What is MiniLM ?"]) == [[101, 2054, 2003, 7163, 13728, 1029, 102]]


def test_models_of_other_widths_have_other_titles() -> None:
    small, usual = ARCHITECTURES.get("gpt-small"), ARCHITECTURES.get("llama-small")
    assert [small().title, small(width=64, heads=2).title, small(max_length=64).title] == [
        "gpt-small",
        "gpt-small, width 64",
        "gpt-small",
    ]
    assert usual(width=96).title == "llama-small, width 96"
