"""The interface of a task: batches to train on, a loss, and an evaluation on held-out data."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from rdo.distillation import distilled_loss
from rdo.errors import ConfigError
from rdo_harness.config import settings

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture

Kind = Literal["classification", "causal", "tokens"]
"""Texts with a label; the next byte; the next token of a model's own vocabulary."""
Split = Literal["validation", "test"]
Batch = dict[str, torch.Tensor]

IGNORED = -100
"""Label of a position that neither trains nor counts (the default ``ignore_index`` of PyTorch's cross entropy)."""


_ROWS_AT_ONCE = 8192
"""Rows of logits that are turned into float64 together; a vocabulary may be large."""


@dataclass(frozen=True)
class Teacher:
    """A model in evaluation mode whose answers enter a loss, and their share of it."""

    model: torch.nn.Module
    share: float


@dataclass(frozen=True)
class Evaluation:
    """How a model does on one split.

    Attributes:
        metric: the task's metric, in the unit that ``Task.metric_name`` names.
        cross_entropy: mean negative log likelihood in nats, per question (classification) or per byte (causal).
        items: how many questions or bytes the two means run over.
        correct: per item, in the order of the split, whether the most likely label is the true one; bool [items].
        nats: cross entropy of each question (classification), or the mean over each held-out window (causal), in the
            order of the split; what confidence intervals and paired tests are made of.
        more: further metrics by name, which become columns of the row.
    """

    metric: float
    cross_entropy: float
    items: int
    correct: torch.Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    nats: torch.Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    more: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Task(ABC):
    """Options of a task; a subclass is a frozen dataclass whose fields are JSON values.

    ``version`` rises whenever the same options would give different numbers (splits, preprocessing, metric), so that
    rows of different versions are never compared.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    kind: ClassVar[Kind]
    metric_name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    num_labels: ClassVar[int]
    """Classes of a classification task, size of the vocabulary of a causal one."""

    @abstractmethod
    def prepare(self, architecture: Architecture) -> PreparedTask:
        """Fetch the data if needed, and encode it for ``architecture``.

        Raises:
            ConfigError: the architecture is of another kind, or too short for the task's context.
            DataError: the data cannot be had.
        """

    def config(self) -> dict[str, Any]:
        """Name, version and options, as JSON values."""
        return {"name": self.name, "version": self.version, **settings(self)}

    def check_kind(self, architecture: Architecture) -> None:
        """Raise :class:`~rdo.errors.ConfigError` unless ``architecture`` is of this task's kind."""
        if architecture.kind != self.kind:
            raise ConfigError(
                f"task {self.name!r} is of kind {self.kind!r}, architecture {architecture.name!r} of kind "
                f"{architecture.kind!r}; choose an architecture of kind {self.kind!r}"
            )


class PreparedTask(ABC):
    """A task whose splits are encoded and in memory."""

    task: Task
    train_items: int
    """Size of the training split: questions, or bytes."""

    @abstractmethod
    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yield ``steps`` batches of ``batch_size`` examples; the same ones for the same arguments, on any machine."""

    @abstractmethod
    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 64) -> Evaluation:
        """Measure ``model`` on ``split`` in evaluation mode; its mode is restored, ``batch_size`` only affects speed.

        Raises:
            ConfigError: there is no such split.
        """

    def loss(self, model: torch.nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Mean cross entropy in nats over the labels of ``batch``, a scalar to call ``backward`` on.

        With a teacher, :func:`rdo.distillation.distilled_loss` of it.
        """
        logits, labels = _forward(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
        if teacher is None:
            return loss
        with torch.no_grad():
            targets, _ = _forward(teacher.model, batch)
        return distilled_loss(loss, logits, targets, labels != IGNORED, share=teacher.share)


def label_cross_entropy(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every counted label of a batch: its cross entropy in nats, float64 [labels], and whether it was the most
    likely one, bool [labels]; both on the CPU, in the order of the batch."""
    logits, labels = _forward(model, batch)
    counted = labels != IGNORED
    rows = zip(logits[counted].split(_ROWS_AT_ONCE), labels[counted].split(_ROWS_AT_ONCE), strict=True)
    parts = [
        (torch.nn.functional.cross_entropy(chosen.double(), true, reduction="none"), chosen.argmax(-1) == true)
        for chosen, true in rows
    ]
    return torch.cat([nats for nats, _ in parts]).cpu(), torch.cat([correct for _, correct in parts]).cpu()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _forward(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items()}
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
