"""Training to a quality: the limit is kept, a looser one gives a smaller file, resuming is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.attach import TargetAttachment
from rdo.errors import ConfigError
from rdo.quality import QualityTarget

SIZE, STEPS = 48, 160


def data(seed: int, count: int = 64) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))
    teacher = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(99))
    return inputs, (inputs @ teacher).argmax(1)


class Training:
    """A small classifier with dropout, trained with a learning rate that decays to zero."""

    def __init__(self, max_loss: float | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(SIZE, 128), nn.Tanh(), nn.Dropout(0.1), nn.Linear(128, 5))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, STEPS)
        self.seen: list[bool] = []
        self.handle: TargetAttachment | None = None
        if max_loss is not None:
            handle = rdo.attach(
                self.optimizer, self.model, evaluate=self.evaluate, verbose=False,
                max_loss=max_loss, target_options={"start": 0, "every": 5, **options},
            )  # fmt: skip
            assert isinstance(handle, TargetAttachment)
            self.handle = handle

    def evaluate(self, model: nn.Module) -> float:
        self.seen.append(model.training or torch.is_grad_enabled())
        inputs, labels = data(10_000, 512)
        return float(nn.functional.cross_entropy(model(inputs), labels))

    def run(self, steps: range = range(STEPS)) -> Training:
        for step in steps:
            torch.manual_seed(step)
            inputs, labels = data(step)
            loss = nn.functional.cross_entropy(self.model(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        return self


def plain_loss() -> float:
    training = Training().run()
    training.model.eval()
    with torch.no_grad():
        return training.evaluate(training.model)


def test_decoded_model_is_within_the_limit_and_a_looser_limit_gives_a_smaller_file(tmp_path: Path) -> None:
    plain, sizes = plain_loss(), []
    for share in (1.6, 2.5):
        training = Training(share * plain).run()
        assert training.handle is not None
        sizes.append(training.handle.save(tmp_path / "model.rdo").bits_per_parameter)
        assert training.model.training
        assert not any(training.seen)  # measured in evaluation mode and without gradients
        training.model.load_state_dict(rdo.load_compressed(tmp_path / "model.rdo"))
        training.model.eval()
        with torch.no_grad():
            loss = training.evaluate(training.model)
        assert 0.9 * share * plain < loss <= share * plain  # not wasted either

    assert sizes[0] > 1.1 * sizes[1]


def test_size_comes_to_the_same_from_above_and_below(tmp_path: Path) -> None:
    plain, found = plain_loss(), []
    for begin in (1.5, 6.0):
        training = Training(2.5 * plain, begin_bits=begin).run()
        assert training.handle is not None
        info = training.handle.save(tmp_path / "model.rdo")
        assert info.bits_per_parameter == pytest.approx(training.handle.target.bits_per_parameter, rel=0.01)
        found.append(training.handle.target.entropy_bits)
    assert found[0] == pytest.approx(found[1], rel=0.3)


def test_size_falls_at_any_learning_rate_but_grows_only_after_its_peak() -> None:
    for limit, shrinks in ((1e-6, False), (1e6, True)):
        training = Training(limit, begin_bits=3.0)
        training.schedule = torch.optim.lr_scheduler.ConstantLR(training.optimizer, 1.0)
        assert training.handle is not None
        training.run(range(22))
        first = training.handle.target.goal_bits
        training.run(range(22, 60))
        bits = training.handle.target.goal_bits
        assert (bits < first) == shrinks
        assert shrinks or bits == first
        training.optimizer.param_groups[0]["lr"] *= 0.1
        training.schedule = torch.optim.lr_scheduler.ConstantLR(training.optimizer, 1.0)
        training.run(range(60, 70))
        later = training.handle.target.goal_bits
        assert later > bits if limit < 1.0 else later < bits


@pytest.mark.parametrize("stopped", [30, 110])
def test_resuming_gives_the_same_bits(stopped: int) -> None:
    limit = 1.6 * plain_loss()
    whole = Training(limit).run()
    first, second = Training(limit).run(range(stopped)), Training(limit)
    assert first.handle is not None
    assert second.handle is not None
    assert whole.handle is not None
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.schedule.load_state_dict(first.schedule.state_dict())
    second.handle.load_state_dict(first.handle.state_dict())
    second.run(range(stopped, STEPS))
    for mine, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert second.handle.target.goal_bits == whole.handle.target.goal_bits


def test_an_unreachable_limit_is_refused_and_the_model_stays() -> None:
    training = Training(1e-6, begin_bits=1.0).run()
    assert training.handle is not None
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    with pytest.raises(ConfigError, match="train longer, or allow a larger max_loss"):
        training.handle.land()
    for parameter, kept in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


def attach(evaluate: Callable[[nn.Module], float] | None = lambda model: 1.0, **options: Any) -> rdo.Attachment:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return rdo.attach(optimizer, model, evaluate=evaluate, verbose=False, **options)


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_loss and evaluate, a function that measures a model, go together"):
        attach(None, max_loss=1.0)
    with pytest.raises(ConfigError, match="go together"):
        attach(bits_per_parameter=2.0)
    for other in ({"size_mb": 1.0}, {"lam": 0.1}, {"bits_per_parameter": 2.0}):
        with pytest.raises(ConfigError, match="give one of lam, bits_per_parameter, size_mb and max_loss"):
            attach(max_loss=1.0, **other)
    with pytest.raises(ConfigError, match="must be a positive number, got 0"):
        attach(max_loss=0.0)
    with pytest.raises(ConfigError, match="every must be 1 or more"):
        attach(max_loss=1.0, target_options={"every": 0})


def test_another_limit_cannot_be_resumed_and_nan_is_named() -> None:
    handle, other = attach(max_loss=1.0), attach(max_loss=2.0)
    with pytest.raises(ConfigError, match=r"max_loss was 1\.0 .* is 2\.0 now"):
        other.load_state_dict(handle.state_dict())
    training = Training(1.0).run(range(30))
    assert training.handle is not None
    target = training.handle.target
    assert isinstance(target, QualityTarget)
    target._evaluate = lambda model: float("nan")
    with pytest.raises(ConfigError, match="evaluate returned nan after 30 optimizer steps"):
        target.land()
