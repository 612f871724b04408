"""The last phase of a training to a size: zeros stay zero, and the rate term rests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.attach import TargetAttachment
from rdo.errors import ConfigError
from rdo.measurement import MEASURED_STEPS
from tests.rdo.test_target import model_of, train

RATE = 3e-3


def sized(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, TargetAttachment]:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    options = {"start": 0, "hardening": 0, "compensated": False, **options}
    handle = rdo.attach(optimizer, model, bits_per_parameter=1.2, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    return model, optimizer, handle


def fallen(optimizer: torch.optim.Optimizer, share: float) -> None:
    optimizer.param_groups[0]["lr"] = share * RATE


def masters(handle: TargetAttachment) -> Tensor:
    assert handle.target.grid is not None
    return torch.cat([master.flatten() for master in handle.target.grid.masters]).clone()


def coded(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])


@pytest.mark.parametrize("recovery", [0.0, 0.5])
def test_zeros_stay_zero_only_with_recovery(recovery: float) -> None:
    model, optimizer, handle = sized(recovery=recovery)
    train(model, optimizer, range(60))
    fallen(optimizer, 0.5)
    zero = coded(model) == 0
    assert 0.2 < float(zero.float().mean()) < 0.95
    train(model, optimizer, range(60, 100))
    back = float((coded(model)[zero] != 0).float().mean())
    if recovery:
        assert back == 0.0
        assert not masters(handle)[zero].any()
        assert float((masters(handle)[~zero] == 0).float().mean()) < 0.01, "the others are free"
    else:
        assert back > 0.0, "else the other case shows nothing"


def test_the_rate_term_rests_and_the_size_is_met(tmp_path: Any) -> None:
    model, optimizer, handle = sized(recovery=0.5)
    lam = handle.constraint.lam_tensor
    assert lam is not None
    train(model, optimizer, range(60))
    assert float(lam) > 0.0
    fallen(optimizer, 0.5)
    train(model, optimizer, range(60, 70))
    assert float(lam) == 0.0
    train(model, optimizer, range(70, 100))
    info = handle.save(tmp_path / "model.rdo")
    assert 0.99 * 1.2 <= info.bits_per_parameter <= 1.2


def test_nothing_is_frozen_while_the_learning_rate_is_high_or_weights_are_soft() -> None:
    model, optimizer, handle = sized(recovery=0.5)
    fallen(optimizer, 0.2)  # a warm-up
    train(model, optimizer, range(10))
    fallen(optimizer, 1.0)
    train(model, optimizer, range(10, 60))
    fallen(optimizer, 0.51)
    train(model, optimizer, range(60, 70))
    assert masters(handle).all()
    model, optimizer, handle = sized(recovery=0.9, hardening=60)
    train(model, optimizer, range(MEASURED_STEPS + 5))
    fallen(optimizer, 0.9)
    train(model, optimizer, range(30, 60))
    assert masters(handle).all()
    fallen(optimizer, 0.3)
    train(model, optimizer, range(60, 62))
    assert not masters(handle).all()


@pytest.mark.parametrize("steps", [MEASURED_STEPS - 5, 40, 70])
def test_resuming_before_or_in_it_gives_the_same_bits(steps: int) -> None:
    def go_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(steps, 90):
            fallen(optimizer, 1.0 if step < 60 else 0.4)
            train(model, optimizer, range(step, step + 1))

    model, optimizer, handle = sized(recovery=0.5)
    for step in range(steps):
        fallen(optimizer, 1.0 if step < 60 else 0.4)
        train(model, optimizer, range(step, step + 1))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    go_on(model, optimizer)
    other, resumed, second = sized(recovery=0.5)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    go_on(other, resumed)
    assert torch.equal(coded(model), coded(other))
    assert torch.equal(masters(handle), masters(second))
    assert not masters(second).all()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="recovery must be a share of the learning rate's peak, from 0 to below 1"):
        sized(recovery=share)
