"""Tiny models and a task of noise, to try peers on: nothing is downloaded, and a run takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from rdo_harness.architectures.base import Architecture
from rdo_harness.architectures.bert_small import BertSmall
from rdo_harness.architectures.gpt_small import GPTSmall
from rdo_harness.architectures.llama_small import LlamaSmall
from rdo_harness.tasks.base import Batch, Evaluation, Kind, PreparedTask, Split, Task, evaluating, label_cross_entropy

_LENGTH = 32


@dataclass(frozen=True)
class Noise(Task):
    """Random bytes; classification asks for nothing that could be learned."""

    name: ClassVar[str] = "noise"
    version: ClassVar[int] = 1
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, architecture: Architecture) -> PreparedTask:
        return _Noise(self)


class Bytes(Noise):
    """The next byte."""

    kind: ClassVar[Kind] = "causal"
    num_labels: ClassVar[int] = 256


class Labels(Noise):
    """One of six labels."""

    kind: ClassVar[Kind] = "classification"
    num_labels: ClassVar[int] = 6


class _Noise(PreparedTask):
    def __init__(self, task: Task) -> None:
        self.task = task
        self.train_items = 1 << 20

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            windows = torch.randint(0, 256, (batch_size, _LENGTH + 1), generator=generator)
            inputs = windows[:, :-1]
            if self.task.kind == "causal":
                yield {"input_ids": inputs, "labels": windows[:, 1:]}
            else:
                labels = windows[:, -1] % self.task.num_labels
                yield {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}

    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 64) -> Evaluation:
        (batch,) = self.train_batches(8, 1, {"validation": -1, "test": -2}[split] + 1000)
        with evaluating(model):
            nats, correct = label_cross_entropy(model, batch)
        return Evaluation(float(correct.double().mean()), float(nats.mean()), correct.numel(), correct, nats)


def samples() -> list[tuple[Architecture, PreparedTask]]:
    """A tiny BERT, GPT-2 and Llama, each with a task of its kind; 64 divides every row."""
    size: dict[str, Any] = {"width": 64, "layers": 2, "heads": 2, "max_length": 64}
    chosen: list[Architecture] = [
        BertSmall(**size, intermediate=128),
        GPTSmall(**size),
        LlamaSmall(**size, intermediate=128),
    ]
    tasks = {"causal": Bytes(), "classification": Labels()}
    return [(architecture, tasks[architecture.kind].prepare(architecture)) for architecture in chosen]
