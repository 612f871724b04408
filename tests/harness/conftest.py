"""A task and an architecture that train in milliseconds, so that whole runs can be tested."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rdo_harness.architectures.base import Architecture, seeded
from rdo_harness.registries import ARCHITECTURES, TASKS
from rdo_harness.suite import Suite, parse_suite
from rdo_harness.tasks.base import Evaluation, PreparedTask, Task, evaluating, label_cross_entropy


class Mlp(torch.nn.Module):
    """Two layers behind the interface of a transformers classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 32), torch.nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.second(self.first(input_ids).relu()))


@dataclass(frozen=True)
class TinyArchitecture(Architecture):
    """A small perceptron, for tests."""

    name: ClassVar[str] = "tiny-mlp"
    kind: ClassVar[str] = "classification"
    pad_id: ClassVar[int] = 0
    max_length: int = 16

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        with seeded(seed):
            return Mlp()

    def encode(self, texts):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class PreparedTiny(PreparedTask):
    def __init__(self, task: Task) -> None:
        self.task = task
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(600, 16, generator=generator)
        self.labels = (self.inputs[:, :3] + 0.3 * torch.randn(600, 3, generator=generator)).argmax(1)
        self.train_items = 400

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(0, 400, (batch_size,), generator=generator)
            yield {"input_ids": self.inputs[chosen], "labels": self.labels[chosen]}

    def evaluate(self, model: torch.nn.Module, split: str, batch_size: int = 64) -> Evaluation:
        part = slice(400, 500) if split == "validation" else slice(500, 600)
        with evaluating(model):
            batch = {"input_ids": self.inputs[part], "labels": self.labels[part]}
            nats, correct = label_cross_entropy(model, batch)
        return Evaluation(float(correct.double().mean()), float(nats.mean()), 100, correct, nats)


@dataclass(frozen=True)
class TinyTask(Task):
    """Which of three inputs is largest, for tests."""

    name: ClassVar[str] = "tiny"
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "classification"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    num_labels: ClassVar[int] = 3

    def prepare(self, architecture: Architecture) -> PreparedTask:
        return PreparedTiny(self)


SUITE = """
[suite]
name = "tiny"
description = "a suite that runs in a second"
task = "tiny"
architectures = ["tiny-mlp"]
seeds = [0]

[training]
steps = 40
batch_size = 32
learning_rate = 0.01

[[methods]]
name = "rtn"
label = "normal + RTN"
steps = ["2^-2", "2^-3", "2^-4", "2^-6"]

[[methods]]
name = "pruning"
steps = ["2^-4"]
sparsities = [0.5, 0.8]

[[methods]]
name = "backslash"
lams = [0.01, 0.1]
steps = ["2^-3", "2^-5"]
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the tiny task and architecture for one test."""
    TASKS.names()
    ARCHITECTURES.names()
    monkeypatch.setitem(TASKS._plugins, "tiny", TinyTask)
    monkeypatch.setitem(ARCHITECTURES._plugins, "tiny-mlp", TinyArchitecture)


@pytest.fixture
def document(tiny: None) -> dict[str, Any]:
    """The tiny suite, parsed, to be changed."""
    return tomllib.loads(SUITE)


@pytest.fixture
def tiny_suite_file(tiny: None, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def tiny_suite(tiny: None) -> Suite:
    return parse_suite(tomllib.loads(SUITE), "tiny.toml")
