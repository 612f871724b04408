"""Splits, batches and evaluations of the tasks, on small local data; the real data under the slow marker."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rdo.errors import ConfigError, DataError
from rdo_harness import data
from rdo_harness.registries import ARCHITECTURES
from rdo_harness.tasks import trec, wikitext2
from rdo_harness.tasks.classification import (
    Example,
    PreparedClassification,
    TextClassification,
    split_by_text,
    split_of,
)
from rdo_harness.tasks.trec import LABELS, Trec
from rdo_harness.tasks.wikitext2 import PreparedBytes, WikiText2Bytes


class Words:
    """An architecture as far as a classification task sees it: token 2 + length for each word."""

    name, kind, pad_id, max_length = "words", "classification", 0, 9

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[2 + len(word) for word in text.split()] for text in texts]


class MeanOfTokens(torch.nn.Module):
    """Logits from the mean of the unmasked tokens, so that a wrong mask or padding changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        mean = (input_ids * attention_mask).sum(1) / attention_mask.sum(1)
        return SimpleNamespace(logits=mean.unsqueeze(1) * self.weight)


def questions(count: int = 103) -> list[Example]:
    return [Example(" ".join(["w" * (1 + i % 5)] * (1 + i % 7)) + f" {'x' * i}", i % 6) for i in range(count)]


def prepared(count: int = 103) -> PreparedClassification:
    items = questions(count)
    splits = {"train": items, "validation": items[:31], "test": items[31:90]}
    return PreparedClassification(Trec(), Words(), splits)  # type: ignore[arg-type]


def test_copies_stay_in_one_split_and_contradictions_leave() -> None:
    rows = [Example("Who  was it?", 3), Example("who was IT?", 3), Example("What?", 0), Example("what?", 1)]
    rows += [Example(f"Question {i}?", i % 6) for i in range(2000)]
    splits = split_by_text(rows)
    texts = [question.text for split in splits.values() for question in split]
    assert len(texts) == len(set(texts)) == 2001
    assert "Who  was it?" in texts
    assert not {"who was IT?", "What?", "what?"} & set(texts)
    assert split_of("Who  was it?") == split_of("who was it?")
    shares = {name: len(split) / 2001 for name, split in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.03)
    assert split_by_text(rows[:10])["train"] == [q for q in splits["train"] if q in rows[:10]], "more rows move none"


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        ([Example("hello", "spam")], r"integers from 0 to 1, as its `num_labels` is 2; 'hello' has 'spam'"),  # type: ignore[arg-type]
        ([Example("hello", 2)], "'hello' has 2"),
        ([], "must give examples of 'test', and gives none"),
    ],
)
def test_a_task_of_ones_own_hears_what_is_wrong_with_its_data(examples: list[Example], told: str) -> None:
    @dataclass(frozen=True)
    class Own(TextClassification):
        name: ClassVar[str] = "own"
        version: ClassVar[int] = 1
        num_labels: ClassVar[int] = 2

        def splits(self, source: str) -> dict[str, list[Example]]:
            fine = [Example("good", 1)]
            return {"train": fine, "validation": fine, "test": examples}

    with pytest.raises(ConfigError, match=told):
        Own().prepare(Words())  # type: ignore[arg-type]


def test_an_epoch_shows_each_question_once() -> None:
    task = prepared()
    batches = list(task.train_batches(batch_size=10, steps=10, seed=3))
    assert [len(batch["labels"]) for batch in batches] == [10] * 10
    seen = Counter(
        tuple(row[mask.bool()].tolist())
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    )
    assert len(seen) == 100
    assert set(seen.values()) == {1}
    for batch in batches:
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
        assert (batch["input_ids"][batch["attention_mask"] == 1] > 0).all()
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_batches_follow_the_seed() -> None:
    task = prepared()

    def order(seed: int) -> list[Any]:
        return [batch["input_ids"].tolist() for batch in task.train_batches(10, 25, seed)]

    assert len(order(0)) == 25, "more steps than one epoch holds"
    assert order(0) == order(0)
    assert order(0) != order(1)
    for size in (0, 104):
        with pytest.raises(ConfigError, match=f"batch_size is {size}; it must be from 1 to the 103 training items"):
            next(task.train_batches(size, 1, 0))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_evaluation_is_the_mean_over_items_whatever_the_batches(batch_size: int) -> None:
    task, model = prepared(), MeanOfTokens().train()
    found = task.evaluate(model, "test", batch_size=batch_size)
    nats, correct = [], []
    for question in questions()[31:90]:
        [ids] = Words().encode([question.text])
        logits = torch.tensor([sum(ids) / len(ids)]) * model.weight.detach()
        nats.append(-float(logits.log_softmax(0)[question.label]))
        correct.append(int(logits.argmax()) == question.label)
    assert found.cross_entropy == pytest.approx(math.fsum(nats) / 59, rel=1e-6)
    assert found.metric == sum(correct) / 59
    assert found.items == 59
    assert found.correct is not None
    assert found.correct.tolist() == correct
    assert model.training
    with pytest.raises(ConfigError, match="unknown split 'dev'; known: train, validation, test"):
        task.evaluate(model, "dev")  # type: ignore[arg-type]


def test_questions_from_the_hub_are_read_and_checked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_5500.label").write_bytes(b"HUM:ind Who was it ?\nNUM:date When did \xf0 end ?\n")
    (tmp_path / "TREC_10.label").write_bytes(b"LOC:other Where ?\n")
    monkeypatch.setattr(data, "hub_file", lambda repository, filename: tmp_path / filename)
    assert trec._rows_from_hub() == [
        Example("Who was it ?", LABELS.index("HUM")),
        Example("When did   end ?", LABELS.index("NUM")),
        Example("Where ?", LABELS.index("LOC")),
    ]
    trec.load_splits.cache_clear()
    with pytest.raises(DataError, match="the TREC questions from hub has SHA-256"):
        trec.load_splits("hub")
    (tmp_path / "TREC_10.label").write_bytes(b"PLACE:other Where ?\n")
    with pytest.raises(DataError, match="not in the expected format"):
        trec._rows_from_hub()


class NextByte(torch.nn.Module):
    """A table of logits by the last byte."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def text(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("limit", "items"), [(0, 999), (512, 512), (500, 500), (4000, 999)])
def test_every_byte_is_predicted_once(limit: int, items: int) -> None:
    held_out, model = text(1000), NextByte()
    task = PreparedBytes(WikiText2Bytes(context=64, evaluation_bytes=limit), {"train": held_out, "test": held_out})
    found = task.evaluate(model, "test", batch_size=5)
    logits = model.table.detach()[held_out[:items].long()].double()
    expected = torch.nn.functional.cross_entropy(logits, held_out[1 : items + 1].long())
    assert found.cross_entropy == pytest.approx(float(expected), rel=1e-9)
    assert found.metric == pytest.approx(float(expected) / math.log(2), rel=1e-9)
    assert found.items == items == len(found.correct)  # type: ignore[arg-type]


def test_windows_follow_the_seed_and_labels_are_the_next_bytes() -> None:
    train = text(5000)
    task = PreparedBytes(WikiText2Bytes(context=32), {"train": train})
    batches = list(task.train_batches(8, 3, seed=5))
    again, other = list(task.train_batches(8, 3, seed=5)), list(task.train_batches(8, 3, seed=6))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0]["input_ids"], other[0]["input_ids"])
    joined = bytes(train.tolist())
    for batch in batches:
        assert batch["input_ids"].shape == batch["labels"].shape == (8, 32)
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            assert bytes([*inputs.tolist(), int(labels[-1])]) in joined
            assert inputs[1:].tolist() == labels[:-1].tolist()
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(task.train_batches(0, 1, 0))


def test_a_context_that_the_model_cannot_see_is_refused() -> None:
    gpt = ARCHITECTURES.get("gpt-small")(max_length=100)
    for context in (0, 101):
        with pytest.raises(ConfigError, match=f"context is {context}; it must be from 1 to the 100 tokens"):
            WikiText2Bytes(context=context).prepare(gpt)


def test_a_task_refuses_the_other_kind() -> None:
    with pytest.raises(ConfigError, match="task 'trec' is of kind 'classification', architecture 'gpt-small'"):
        Trec().prepare(ARCHITECTURES.get("gpt-small")())
    with pytest.raises(ConfigError, match="choose an architecture of kind 'causal'"):
        WikiText2Bytes().prepare(ARCHITECTURES.get("minilm")())


@pytest.mark.slow
def test_the_real_questions() -> None:
    splits = trec.load_splits("wheels")
    assert {name: len(split) for name, split in splits.items()} == {"train": 4187, "validation": 568, "test": 1113}
    assert all({question.label for question in split} == set(range(6)) for split in splits.values())


@pytest.mark.slow
def test_the_real_bytes() -> None:
    splits = wikitext2.load_bytes("wheels")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 10_940_747,
        "validation": 1_146_846,
        "test": 1_290_590,
    }
