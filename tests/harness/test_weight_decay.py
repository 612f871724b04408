"""Weight decay as a method is AdamW's own, and stronger decay leaves smaller weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdo.errors import ConfigError
from rdo_harness import training
from rdo_harness.methods.weight_decay import WeightDecay
from rdo_harness.rate_settings import RateSettings
from rdo_harness.suite import Suite

SEED = 3


def trained(suite: Suite, rate: RateSettings | None, folder: Path) -> torch.nn.Module:
    (part,) = suite.parts
    (architecture,) = part.architectures
    prepared = part.task.prepare(architecture)
    found = training.trained(prepared, architecture, part.budget, rate, SEED, folder, lambda *_: None)
    return training.load_trained(architecture.build(SEED, part.task), found)


def norm(model: torch.nn.Module) -> float:
    return sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim == 2) ** 0.5


def test_it_equals_the_weight_decay_of_adamw(tiny_suite: Suite, tmp_path: Path) -> None:
    (part,) = tiny_suite.parts
    (architecture,) = part.architectures
    rate = WeightDecay(lams=(2.0,), steps=("2^-4",)).points()[0].rate
    model = architecture.build(SEED, part.task).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 2.0},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=part.budget.learning_rate)
    steps, warmup = part.budget.steps, 4
    prepared = part.task.prepare(architecture)
    for step, batch in enumerate(prepared.train_batches(part.budget.batch_size, steps, SEED)):
        for group in optimizer.param_groups:
            group["lr"] = part.budget.learning_rate * min((step + 1) / warmup, (steps - step) / (steps - warmup))
        optimizer.zero_grad()
        prepared.loss(model, batch).backward()
        optimizer.step()
    for ours, plain in zip(trained(tiny_suite, rate, tmp_path).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_weights_are_the_smaller_the_stronger_it_is(tiny_suite: Suite, tmp_path: Path) -> None:
    rates = [None, *(point.rate for point in WeightDecay(lams=(0.5, 2.0, 8.0), steps=("2^-4",)).points())]
    norms = [norm(trained(tiny_suite, rate, tmp_path)) for rate in rates]
    assert norms == sorted(norms, reverse=True)
    assert norms[1] < 0.99 * norms[0]
    assert norms[3] < 0.5 * norms[0]


@pytest.mark.parametrize("lams", [(), (0.0,), (float("inf"),)])
def test_strengths_must_be_positive(lams: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="give positive `lams`"):
        WeightDecay(lams=lams, steps=("2^-4",))
