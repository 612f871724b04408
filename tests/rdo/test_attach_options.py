"""rdo.attach with factors of lambda by name, wrapped optimizers, compiled steps and 16-bit weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.errors import ConfigError
from rdo.optim import RateAdamW


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(32, 6, generator=generator)
    return nn.functional.cross_entropy(model(inputs), torch.randint(0, 3, (32,), generator=generator))


def change(apply: str = "gradient", lam: float = 0.5, pooling: str = "global", **options: Any) -> dict[str, Tensor]:
    """What one step of SGD without a loss does to each matrix: the rate's part alone."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rdo.attach(optimizer, model, lam=lam, apply=apply, pooling=pooling, verbose=False, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters() if p.ndim >= 2}


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
@pytest.mark.parametrize("pooling", ["global", "tensor"])
def test_the_first_pattern_that_matches_gives_the_factor(apply: str, pooling: str) -> None:
    plain = change(apply, pooling=pooling)
    mixed = change(apply, pooling=pooling, lam_factors={"0.*": 0.0, "[02].weight": 2.0})
    assert not mixed["0.weight"].any()
    torch.testing.assert_close(mixed["2.weight"], change(apply, 1.0, pooling)["2.weight"], rtol=1e-5, atol=1e-9)
    assert torch.equal(mixed["4.weight"], plain["4.weight"])
    assert not torch.equal(mixed["2.weight"], plain["2.weight"])


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"encoder.*": 2.0}, r"'encoder\.\*' decides nothing: it matches none of 0\.weight, 2\.weight"),
        ({"*": 1.0, "0.weight": 2.0}, r"'0\.weight' decides nothing: patterns before it match first"),
        ({"*": -1.0}, "must be a number of 0 or more, got -1"),
        ({"*": float("nan")}, "must be a number of 0 or more, got nan"),
    ],
)
def test_factors_without_effect_or_sense_are_refused(factors: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change(lam_factors=factors)


def test_factors_are_part_of_the_saved_settings() -> None:
    def attached(**options: Any) -> rdo.Attachment:
        model = mlp()
        return rdo.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, lam=0.5, verbose=False, **options)

    state = attached(lam_factors={"0.*": 2.0}).state_dict()
    attached(lam_factors={"0.*": 2.0}).load_state_dict(state)
    with pytest.raises(ConfigError, match="cannot resume: lam_factors was"):
        attached().load_state_dict(state)


def test_the_fused_optimizer_refuses_factors() -> None:
    model = nn.Linear(4, 4)
    constraint = rdo.RateConstraint([("weight", model.weight)], lam=0.5, lam_factors={"*": 2.0})
    with pytest.raises(ConfigError, match=r"neither sharded parameters nor lam_factors; use torch\.optim\.AdamW"):
        RateAdamW(model.parameters(), rate=constraint)


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_hooks_survive_a_compiled_step(apply: str) -> None:
    """The eager backend: whether hooks fire is up to the tracer, not to the code it generates."""

    def train(compiled: bool) -> tuple[list[Tensor], int]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        handle = rdo.attach(optimizer, model, lam=0.5, apply=apply, verbose=False)
        step = torch.compile(lambda: optimizer.step(), backend="eager") if compiled else optimizer.step
        forward = torch.compile(model, backend="eager") if compiled else model
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(forward).backward()
            step()
        return [p.detach().clone() for p in model.parameters()], handle.rate().step

    (plain, steps), (compiled, compiled_steps) = train(False), train(True)
    assert steps == compiled_steps == 3
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)  # Adam itself differs by 2e-7 once it is traced


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_16_bit_weights_that_lose_steps_get_a_warning(apply: str) -> None:
    model = mlp().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"on 16-bit weights.*lost.*master_weights=True"):
        rdo.attach(optimizer, model, lam=0.5, apply=apply, verbose=False)


def test_float32_weights_get_none() -> None:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rdo.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, lam=0.5, apply="proximal", verbose=False)


def test_bfloat16_alone_stands_still_where_a_master_copy_moves() -> None:
    """The trap itself: 1 minus a thousand steps of 1e-3 stays 1 in bfloat16."""
    moved = []
    for master in (False, True):
        model = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
        nn.init.constant_(model.weight, 1.0)
        constraint = rdo.RateConstraint([("weight", model.weight)], lam=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = RateAdamW(model.parameters(), lr=1e-3, weight_decay=0.0, rate=constraint, master_weights=master)
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        moved.append(float((1.0 - model.weight.detach()).max()))
    assert moved[0] == 0.0
    assert moved[1] == pytest.approx(0.1, abs=0.01)


def test_replaced_parameters_are_noticed_at_the_first_step() -> None:
    """As accelerate's and FSDP2's preparation does when it comes after attach."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rdo.attach(optimizer, model, lam=0.5, verbose=False)
    optimizer.param_groups[0]["params"] = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ConfigError, match=r"0\.weight is not in the optimizer any more.*Attach last"):
        optimizer.step()
