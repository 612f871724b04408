"""Weights that harden by degrees after the first rounding of a training to a size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.attach import TargetAttachment
from rdo.errors import ConfigError
from rdo.hardening import HARDENING
from rdo.measurement import MEASURED_STEPS
from tests.rdo.test_target import SIZE, model_of, train


def sized(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, TargetAttachment]:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    options = {"start": 0, "compensated": False, **options}
    handle = rdo.attach(optimizer, model, bits_per_parameter=1.5, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    return model, optimizer, handle


def weights(model: nn.Module, handle: TargetAttachment) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of every coded tensor what the loss sees, the unrounded weights, those rounded to nearest, and the steps."""
    grid = handle.target.grid
    assert grid is not None
    found = []
    for name, master, step in zip(grid.names, grid.masters, grid.all_steps(), strict=True):
        each = step.reshape(-1, 1) if step.ndim == 1 else step
        found.append((model.get_parameter(name).detach(), master, (master / each).round() * each, each.clone()))
    return found


@pytest.mark.parametrize("channels", [True, False])
def test_weights_go_to_their_rounded_values_in_equal_strides(channels: bool) -> None:
    model, optimizer, handle = sized(hardening=9, channels=channels)
    train(model, optimizer, range(MEASURED_STEPS))
    for step in range(12):
        share = min((step + 1) / 10, 1.0)
        for seen, master, rounded, _ in weights(model, handle):
            torch.testing.assert_close(seen, master + share * (rounded - master))
            assert share == 1.0 or not torch.equal(seen, rounded)
        train(model, optimizer, range(step, step + 1))


def test_a_learning_rate_that_falls_hardens_weights_too() -> None:
    model, optimizer, handle = sized(hardening=1000)
    train(model, optimizer, range(MEASURED_STEPS))
    for rate, share in ((3e-3, None), (3e-3 * 0.7, 0.5), (3e-3 * 0.4, 1.0)):
        optimizer.param_groups[0]["lr"] = rate
        train(model, optimizer, range(1))
        for seen, master, rounded, _ in weights(model, handle):
            if share is not None:
                torch.testing.assert_close(seen, master + share * (rounded - master))


def test_noise_is_as_wide_as_a_step_and_new_in_every_step() -> None:
    model, optimizer, handle = sized(hardening=5, softness="noise")
    train(model, optimizer, range(MEASURED_STEPS))
    before = None
    for step in range(5):
        noise = torch.cat([((seen - master) / each).flatten() for seen, master, _, each in weights(model, handle)])
        assert float(noise.abs().max()) <= 0.5001
        assert abs(float(noise.mean())) < 0.01
        assert float(noise.square().mean()) == pytest.approx(1 / 12, rel=0.02)
        if before is not None:
            assert abs(float((noise * before).mean())) < 0.02 / 12 * 10
        before = noise
        train(model, optimizer, range(step, step + 1))
    assert all(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))


@pytest.mark.parametrize("softness", ["blend", "noise"])
def test_resuming_in_the_midst_gives_the_same_bits(softness: str) -> None:
    options = {"hardening": 20, "softness": softness}
    model, optimizer, handle = sized(**options)
    train(model, optimizer, range(MEASURED_STEPS + 7))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    train(model, optimizer, range(30, 50))
    other, resumed, second = sized(**options)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(other, resumed, range(30, 50))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_is_saved_in_the_midst_is_rounded_and_training_goes_on_soft(tmp_path: Path) -> None:
    model, optimizer, handle = sized(hardening=1000)
    train(model, optimizer, range(MEASURED_STEPS + 5))
    info = handle.save(tmp_path / "model.rdo")
    assert 0.995 * 1.5 <= info.bits_per_parameter <= 1.5
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(value, decoded[name]) for name, value in model.state_dict().items())
    train(model, optimizer, range(1))
    assert not any(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))


def test_by_default_weights_are_hard_after_a_hundred_steps() -> None:
    model, optimizer, handle = sized()
    train(model, optimizer, range(MEASURED_STEPS + HARDENING - 1))
    assert not any(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))
    train(model, optimizer, range(1))
    assert all(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))


def test_a_first_rounding_that_is_compensated_is_hard() -> None:
    model, optimizer, handle = sized(compensated=True)
    train(model, optimizer, range(MEASURED_STEPS))
    assert all(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))


def compiled_whole() -> tuple[nn.Module, nn.Module]:
    model = model_of()
    compiled: nn.Module = torch.compile(model, backend="eager", fullgraph=True)
    return model, compiled


def compiled_mostly() -> tuple[nn.Module, nn.Module]:
    """All but a last layer of a hundredth of the weights."""
    first = model_of()
    assert isinstance(first, nn.Sequential)
    model = nn.Sequential(Block(first[:-1]), first[-1])
    model[0].compile(backend="eager", fullgraph=True)
    return model, model


class Block(nn.Module):
    """Layers that are compiled for themselves."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


@pytest.mark.parametrize("make", [compiled_whole, compiled_mostly])
def test_what_records_few_inputs_hardens(make: Callable[[], tuple[nn.Module, nn.Module]], tmp_path: Path) -> None:
    """Hooks are not called by what is compiled; the file has the names of the model inside."""
    torch.compiler.reset()
    model, compiled = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    handle = rdo.attach(optimizer, compiled, bits_per_parameter=1.5, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    train(compiled, optimizer, range(5))
    compiled(torch.zeros(1, SIZE)).sum().backward()  # compiles again for another number of rows, now with hooks
    train(compiled, optimizer, range(5, MEASURED_STEPS + 3))
    assert not any(torch.equal(seen, rounded) for seen, _, rounded, _ in weights(model, handle))
    handle.save(tmp_path / "model.rdo")
    assert set(rdo.load_compressed(tmp_path / "model.rdo")) == set(model.state_dict())
    rdo.save_compressed(compiled, tmp_path / "other.rdo")
    assert set(rdo.load_compressed(tmp_path / "other.rdo")) == set(model.state_dict())


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="hardening must be 0 or more optimizer steps, got -1"):
        sized(hardening=-1)
    with pytest.raises(ConfigError, match="softness must be one of blend, noise; got 'soft'"):
        sized(softness="soft")
