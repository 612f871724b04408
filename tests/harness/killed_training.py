"""A training that can be killed: ``python -m tests.harness.killed_training FOLDER STEP`` kills itself after a step."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from rdo_harness import training
from rdo_harness.architectures.base import seeded
from rdo_harness.rate_settings import RateSettings
from rdo_harness.tasks.base import Task
from rdo_harness.training import Budget, Trained
from tests.harness.conftest import Mlp, TinyArchitecture, TinyTask

BUDGET = Budget(steps=30, batch_size=16, learning_rate=0.01, weight_decay=0.01)
RATE = RateSettings(
    lam=0.05,
    entropy_model={"name": "generalized_gaussian", "eps": 0.01},
    apply="decoupled",
    pooling="tensor",
    scale_by_lr=True,
    on=0.7,
)


@dataclass(frozen=True)
class WithDropout(TinyArchitecture):
    """Its training draws random numbers in every step."""

    name: ClassVar[str] = "with-dropout"

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        with seeded(seed):
            model = Mlp()
            model.first = torch.nn.Sequential(model.first, torch.nn.Dropout(0.2))  # type: ignore[assignment]
            return model


def train(folder: Path, kill_after: int = 0, checkpoint_seconds: float = 0.0) -> Trained:
    """Train with a checkpoint after every step, or the rest of a training that was killed."""

    def progress(done: int, total: int, note: str) -> None:
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    architecture = WithDropout()
    prepared = TinyTask().prepare(architecture)
    return training.trained(prepared, architecture, BUDGET, RATE, 3, folder, progress, checkpoint_seconds)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
