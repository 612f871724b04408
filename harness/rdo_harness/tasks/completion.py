"""Causal language modelling of the second text of a pair, given the first: translation, answers to questions."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo.errors import ConfigError
from rdo_harness import data
from rdo_harness.tasks.base import (
    IGNORED,
    Batch,
    Evaluation,
    Kind,
    PreparedTask,
    Split,
    Task,
    evaluating,
    label_cross_entropy,
)
from rdo_harness.tasks.classification import split_of

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture

_END = "\n"


@dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str


@dataclass(frozen=True)
class Completion(Task):
    """Pairs of texts for causal models over bytes or tokens; only the completion's tokens train and count.

    Its metric is that of the paper: the share of the completion's tokens that are the most likely ones when the true
    ones before them are given.

    Attributes:
        train_limit, validation_limit, test_limit: use the first so many pairs of the split only (0: all of them).
        generate: complete so many test pairs greedily and score the texts with chrF, which needs the extra
            ``translation``.
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
    """

    kind: ClassVar[Kind] = "causal"
    metric_name: ClassVar[str] = "token_accuracy"
    higher_is_better: ClassVar[bool] = True
    num_labels: ClassVar[int] = 256

    train_limit: int = 0
    validation_limit: int = 500
    test_limit: int = 1000
    generate: int = 0
    data_source: str | None = None

    @abstractmethod
    def splits(self, source: str) -> dict[str, list[Pair]]:
        """The pairs of "train", "validation" and "test", fetched if needed.

        Raises:
            DataError: they cannot be had, or are not the pinned ones.
        """

    def check_kind(self, architecture: Architecture) -> None:
        if architecture.kind not in ("causal", "tokens"):
            super().check_kind(architecture)

    def prepare(self, architecture: Architecture) -> PreparedCompletion:
        self.check_kind(architecture)
        splits = self.splits(data.resolve_source(self.data_source))
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        return PreparedCompletion(
            self, architecture, {split: pairs[: limits[split] or None] for split, pairs in splits.items()}
        )


class PreparedCompletion(PreparedTask):
    """Encoded pairs; a pair longer than the model can see is left out, and ``left_out`` says how many were."""

    def __init__(self, task: Completion, architecture: Architecture, splits: dict[str, list[Pair]]) -> None:
        self.task: Completion = task
        self._architecture = architecture
        self._pairs: dict[str, list[Pair]] = {}
        self._ids: dict[str, list[tuple[list[int], list[int]]]] = {}
        self.left_out: dict[str, int] = {}
        begin = [] if architecture.begin_id is None else [architecture.begin_id]
        for split, pairs in splits.items():
            encoded = [
                (begin + architecture.encode_all(p.prompt + _END), architecture.encode_all(p.completion + _END))
                for p in pairs
            ]
            fits = [len(prompt) + len(rest) <= architecture.max_length for prompt, rest in encoded]
            self._pairs[split] = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
            self._ids[split] = [ids for ids, fit in zip(encoded, fits, strict=True) if fit]
            self.left_out[split] = len(pairs) - len(self._pairs[split])
        self.train_items = len(self._ids["train"])

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        if not 0 < batch_size <= self.train_items:
            raise ConfigError(f"batch_size is {batch_size}; it must be from 1 to the {self.train_items} training items")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(self.train_items, (batch_size,), generator=generator).tolist()
            yield _batch([self._ids["train"][item] for item in chosen])

    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 32) -> Evaluation:
        if split not in self._ids:
            raise ConfigError(f"unknown split {split!r}; known: {', '.join(self._ids)}")
        ids = self._ids[split]
        order = sorted(range(len(ids)), key=lambda item: sum(map(len, ids[item])))
        by_pair = torch.zeros(len(ids), dtype=torch.float64)
        nats, right, count = 0.0, 0, 0
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                items = order[start : start + batch_size]
                found, correct = label_cross_entropy(model, _batch([ids[item] for item in items]))
                parts = found.split([len(ids[item][1]) for item in items])
                by_pair[items] = torch.stack([part.mean() for part in parts])
                nats, right, count = nats + float(found.sum()), right + int(correct.sum()), count + len(found)
            more = self._chrf(model) if split == "test" and self.task.generate else {}
        return Evaluation(right / count, nats / count, count, nats=by_pair, more=more)

    def _chrf(self, model: torch.nn.Module) -> dict[str, float]:
        """chrF (Popovic, 2015) of greedy completions, from 0 to 100."""
        try:
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise ConfigError(
                "`generate` needs sacrebleu; install it with: pip install 'backslash-rdo[translation]'"
            ) from error
        chosen = self._ids["test"][: self.task.generate]
        texts = [self._completed(model, prompt, 2 * len(rest)) for prompt, rest in chosen]
        truth = [pair.completion for pair in self._pairs["test"][: self.task.generate]]
        return {"chrf": CHRF().corpus_score(texts, [truth]).score}

    def _completed(self, model: torch.nn.Module, prompt: list[int], longest: int) -> str:
        device = next(model.parameters()).device
        ids = list(prompt)
        for _ in range(min(longest, self._architecture.max_length - len(prompt))):
            ids.append(int(model(input_ids=torch.tensor([ids], device=device)).logits[0, -1].argmax()))
            if _END in self._architecture.decode(ids[-1:]):
                break
        return self._architecture.decode(ids[len(prompt) :]).partition(_END)[0]


def shuffled_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """In the order of the SHA-256 of both texts."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(f"{pair.prompt}\n{pair.completion}".encode()).digest())


def with_validation(train: Sequence[Pair], test: list[Pair]) -> dict[str, list[Pair]]:
    """A tenth of ``train``, by a hash of the prompt, as "validation"."""
    held_out = [split_of(pair.prompt) == "validation" for pair in train]
    return {
        "train": [pair for pair, out in zip(train, held_out, strict=True) if not out],
        "validation": [pair for pair, out in zip(train, held_out, strict=True) if out],
        "test": test,
    }


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Padding on the right is invisible to causal attention, and its labels are ignored, as are those of prompts."""
    width = max(len(prompt) + len(rest) for prompt, rest in pairs) - 1
    inputs, labels = torch.zeros(len(pairs), width, dtype=torch.long), torch.full((len(pairs), width), IGNORED)
    for row, (prompt, rest) in enumerate(pairs):
        ids = torch.tensor(prompt + rest)
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return {"input_ids": inputs, "labels": labels}
