"""Tasks that complete texts, and tasks from the hub on small local folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rdo.errors import ConfigError, DataError
from rdo_harness import data
from rdo_harness.architectures.base import ByteArchitecture
from rdo_harness.registries import ARCHITECTURES, TASKS
from rdo_harness.tasks import translation
from rdo_harness.tasks.completion import Pair, PreparedCompletion, shuffled_pairs, with_validation
from rdo_harness.tasks.hub_records import records

GPT = ARCHITECTURES.get("gpt-small")(max_length=24)
PAIRS = [Pair("go", "ve"), Pair("I know", "lo sé"), Pair("much too long for twenty-four bytes", "no")]


class NextByte(torch.nn.Module):
    """A table of logits by the last byte."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def prepared(pairs: list[Pair] = PAIRS, **options: Any) -> PreparedCompletion:
    task = TASKS.get("translation-en-es")(**options)
    return PreparedCompletion(task, GPT, {"train": pairs, "validation": pairs[:1], "test": pairs})


@pytest.mark.parametrize("batch_size", [1, 2])
def test_only_the_completion_counts_and_padding_never(batch_size: int) -> None:
    task, model = prepared(), NextByte()
    found = task.evaluate(model, "test", batch_size)
    nats, right = [], []
    for pair in PAIRS[:2]:
        whole = f"{pair.prompt}\n{pair.completion}\n".encode()
        for position in range(len(pair.prompt.encode()) + 1, len(whole)):
            logits = model.table.detach()[whole[position - 1]].double()
            nats.append(-float(logits.log_softmax(0)[whole[position]]))
            right.append(int(logits.argmax()) == whole[position])
    assert task.left_out == {"train": 1, "validation": 0, "test": 1}
    assert found.items == len(nats) == 3 + 7
    assert found.cross_entropy == pytest.approx(math.fsum(nats) / len(nats), rel=1e-9)
    assert found.metric == sum(right) / len(right)
    assert found.nats is not None
    assert found.nats.tolist() == pytest.approx([math.fsum(nats[:3]) / 3, math.fsum(nats[3:]) / 7], rel=1e-9)


def test_training_batches_hide_the_prompt() -> None:
    batches = list(prepared().train_batches(2, 3, seed=0))
    assert all(
        torch.equal(a["labels"], b["labels"]) for a, b in zip(batches, prepared().train_batches(2, 3, 0), strict=True)
    )
    for batch in batches:
        for inputs, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            said = bytes(label for label in labels if label >= 0).decode()
            assert said in ("ve\n", "lo sé\n")
            first = next(i for i, label in enumerate(labels) if label >= 0)
            assert bytes(inputs[: first + 1]).decode() in ("go\n", "I know\n")
    with pytest.raises(ConfigError, match="batch_size is 3; it must be from 1 to the 2 training items"):
        next(prepared().train_batches(3, 1, 0))


class Parrot(torch.nn.Module):
    """Knows one answer by heart."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.text, self.bias = text, torch.nn.Parameter(torch.zeros(256))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        following = [self.text[min(i + 1, len(self.text) - 1)] for i in range(input_ids.shape[1])]
        logits = torch.nn.functional.one_hot(torch.tensor(following), 256).float() + self.bias
        return SimpleNamespace(logits=logits.expand(len(input_ids), -1, -1))


def test_chrf_is_that_of_greedy_completions() -> None:
    pytest.importorskip("sacrebleu")
    pairs = [Pair("I know", "lo sé")]
    right = prepared(pairs, generate=1).evaluate(Parrot("I know\nlo sé\n".encode()), "test")
    wrong = prepared(pairs, generate=1).evaluate(Parrot(b"I know\nqqqqqq\n"), "test")
    assert right.more == {"chrf": pytest.approx(100.0)}
    assert wrong.more["chrf"] < 10
    assert prepared(pairs).evaluate(NextByte(), "test").more == {}


def test_sentences_are_split_by_their_english_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"Sentence {i // 2}.\tFrase {i}.\tlicence" for i in range(2000)]
    monkeypatch.setattr(data, "fetch", lambda wheel: Path())
    monkeypatch.setattr(data, "read_member", lambda path, member: "\n".join(rows).encode())
    with pytest.raises(DataError, match="the sentences has SHA-256"):
        translation.load_pairs("wheels")
    monkeypatch.setattr(data, "verify", lambda content, sha256, what: content)
    translation.load_pairs.cache_clear()
    splits = translation.load_pairs("wheels")
    translation.load_pairs.cache_clear()
    prompts = {name: {pair.prompt for pair in pairs} for name, pairs in splits.items()}
    assert sum(map(len, splits.values())) == 2000
    assert sum(map(len, prompts.values())) == 1000
    assert splits["train"] == shuffled_pairs(splits["train"][::-1])
    with pytest.raises(DataError, match="package index only"):
        translation.load_pairs("hub")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_hub_data_sets_from_local_folders(tmp_path: Path) -> None:
    write(tmp_path / "enron/train.jsonl", [{"text": f"mail {i}", "label": i % 2, "date": "x"} for i in range(200)])
    write(tmp_path / "enron/test.jsonl", [{"text": "buy", "label": 1}])
    enron = TASKS.get("enron-spam")(path=str(tmp_path / "enron")).splits("hub")
    assert len(enron["train"]) + len(enron["validation"]) == 200
    assert 5 < len(enron["validation"]) < 50
    assert [(example.text, example.label) for example in enron["test"]] == [("buy", 1)]
    answer = {"context": "It rained.", "question": "What fell?", "answers": {"text": ["rain", "Rain"]}}
    for split, count in (("train", 30), ("validation", 2)):
        write(tmp_path / f"squad/{split}-00000.jsonl", [{**answer, "context": f"{i}"} for i in range(count)])
    squad = TASKS.get("squad")(path=str(tmp_path / "squad")).splits("hub")
    assert squad["test"][1] == Pair("1\nWhat fell?", "rain")
    assert len(squad["train"]) + len(squad["validation"]) == 30
    pair = {"translation": {"de": "Ja.", "en": "Yes."}}
    write(tmp_path / "wmt/de-en/train-00000-of-2.jsonl", [pair])
    write(tmp_path / "wmt/de-en/train-00001-of-2.jsonl", [pair] * 5)
    write(tmp_path / "wmt/de-en/validation.jsonl", [pair] * 2)
    wmt = TASKS.get("wmt19")(path=str(tmp_path / "wmt")).splits("hub")
    assert len(wmt["train"]) + len(wmt["validation"]) == 1
    assert wmt["test"] == [Pair("Ja.", "Yes.")] * 2


def test_records_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*train\*.jsonl"):
        records(str(tmp_path), "train")
    (tmp_path / "train.jsonl").write_text('{"text": 1}\n{"te\n')
    with pytest.raises(DataError, match=r"train\.jsonl is not readable as jsonl"):
        records(str(tmp_path), "train")


def test_a_tenth_of_training_pairs_is_validation() -> None:
    pairs = [Pair(f"{i}", "x") for i in range(1000)]
    splits = with_validation(pairs, pairs[:3])
    assert 60 < len(splits["validation"]) < 140
    assert sorted(splits["train"] + splits["validation"], key=lambda pair: int(pair.prompt)) == pairs


def test_completions_are_for_causal_models() -> None:
    with pytest.raises(ConfigError, match="architecture 'minilm' of kind 'classification'"):
        TASKS.get("squad")().prepare(ARCHITECTURES.get("minilm")())
    assert isinstance(GPT, ByteArchitecture)


@pytest.mark.slow
def test_the_real_sentences() -> None:
    splits = translation.load_pairs("wheels")
    assert sum(map(len, splits.values())) == 140_868
