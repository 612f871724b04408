"""Language modelling with a pretrained model's own tokens: WikiText-2 raw (Merity et al., 2016)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo.errors import ConfigError
from rdo_harness import data
from rdo_harness.config import later
from rdo_harness.registries import TASKS
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
from rdo_harness.tasks.wikitext2 import load_bytes

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture


@TASKS.register("wikitext2")
@dataclass(frozen=True)
class WikiText2(Task):
    """The official files in tokens; bits per byte are comparable between vocabularies, nats are per token.

    Windows of held-out text do not overlap; each begins with the token that the model was taught to see first, if it
    has one, and otherwise its first token only serves as context.

    Attributes:
        context: tokens predicted at once.
        train_bytes, evaluation_bytes: how much of the training and of each held-out file is used, from its beginning
            (0: all of it).
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
        lm_eval: tasks of lm-evaluation-harness by name, run on what is tested; each metric becomes a column of the row.
            They need the extra ``lm-eval``.
        lm_eval_limit: the first so many items of each of these tasks (0: all of them).
        lm_eval_path: a folder with task files of one's own.
    """

    name: ClassVar[str] = "wikitext2"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "tokens"
    metric_name: ClassVar[str] = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False
    num_labels: ClassVar[int] = 0

    context: int = 128
    train_bytes: int = 0
    evaluation_bytes: int = 65536
    data_source: str | None = None
    lm_eval: tuple[str, ...] = later(())
    lm_eval_limit: int = later(0)
    lm_eval_path: str = later("")

    def prepare(self, architecture: Architecture) -> PreparedTokens:
        self.check_kind(architecture)
        if not 0 < self.context < architecture.max_length:
            raise ConfigError(
                f"context is {self.context}; it must be from 1 to less than the {architecture.max_length} tokens "
                f"(max_length) that architecture {architecture.name!r} may see"
            )
        return PreparedTokens(self, architecture, _texts(data.resolve_source(self.data_source)))


class PreparedTokens(PreparedTask):
    """Token ids of the splits; training windows are drawn at random, held-out ones cover their text in order."""

    def __init__(self, task: WikiText2, architecture: Architecture, texts: dict[str, bytes]) -> None:
        self.task: WikiText2 = task
        limits = {"train": task.train_bytes}
        cut = {split: text[: limits.get(split, task.evaluation_bytes) or None] for split, text in texts.items()}
        self._bytes = {split: len(text) for split, text in cut.items()}
        self._ids = {
            split: torch.tensor(architecture.encode_all(text.decode(errors="ignore"))) for split, text in cut.items()
        }
        self._begin = architecture.begin_id
        self._architecture = architecture
        self.train_items = len(self._ids["train"])

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        generator = torch.Generator().manual_seed(seed)
        text, offsets = self._ids["train"], torch.arange(self.task.context + 1)
        for _ in range(steps):
            starts = torch.randint(len(text) - self.task.context, (batch_size, 1), generator=generator)
            windows = text[starts + offsets]
            yield self._batch(windows[:, :-1], windows[:, 1:])

    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 8) -> Evaluation:
        if split not in self._ids:
            raise ConfigError(f"unknown split {split!r}; known: {', '.join(self._ids)}")
        text, context = self._ids[split], self.task.context
        missing = -(len(text) - 1) % context
        inputs = torch.nn.functional.pad(text[:-1], (0, missing)).view(-1, context)
        labels = torch.nn.functional.pad(text[1:], (0, missing), value=IGNORED).view(-1, context)
        with evaluating(model):
            batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
            found = [label_cross_entropy(model, self._batch(*batch)) for batch in batches]
        nats, correct = (torch.cat(part) for part in zip(*found, strict=True))
        by_window = torch.stack([window.mean() for window in nats.split(context)])
        bits_per_byte = nats.sum().item() / math.log(2) / self._bytes[split]
        more = self._lm_eval(model) if split == "test" and self.task.lm_eval else {}
        return Evaluation(bits_per_byte, nats.mean().item(), len(nats), correct, by_window, more)

    def _lm_eval(self, model: torch.nn.Module) -> dict[str, float]:
        from rdo_harness.architectures.hugging_face import Pretrained
        from rdo_harness.lm_evaluation import evaluate_tasks

        task, architecture = self.task, self._architecture
        if not isinstance(architecture, Pretrained):
            raise ConfigError(f"lm_eval needs a pretrained model with a tokenizer, not {architecture.name!r}")
        metrics = evaluate_tasks(
            model,
            architecture.tokenizer(),
            task.lm_eval,
            limit=task.lm_eval_limit or None,
            include_path=Path(task.lm_eval_path) if task.lm_eval_path else None,
        )
        found = {}
        for metric in metrics:
            suffix = "" if metric.filter == "none" else f",{metric.filter}"
            found[f"lm_eval/{metric.task}/{metric.metric}{suffix}"] = metric.value
            if metric.stderr is not None:
                found[f"lm_eval/{metric.task}/{metric.metric}_stderr{suffix}"] = metric.stderr
        return found

    def _batch(self, inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
        if self._begin is not None:
            column = torch.full((len(inputs), 1), self._begin)
            inputs = torch.cat([column, inputs], dim=1)
            labels = torch.cat([torch.full_like(column, IGNORED), labels], dim=1)
        return {"input_ids": inputs, "labels": labels}


@lru_cache(maxsize=1)
def _texts(source: str) -> dict[str, bytes]:
    return {split: bytes(text.numpy()) for split, text in load_bytes(source).items()}
