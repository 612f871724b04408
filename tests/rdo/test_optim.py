"""RateAdamW against torch.optim.AdamW with the constraint attached, which does the same in several passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.control import OnThenOff
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.shape import solve_shape
from rdo.errors import ConfigError, NonFiniteWeightsError
from rdo.optim import RateAdamW

APPLICATIONS: list[dict[str, Any]] = [
    {"apply": "gradient", "lam": 0.05},
    {"apply": "decoupled", "lam": 2.0, "units": "paper"},
    {"apply": "decoupled", "lam": 0.02, "scale_by_lr": True},
    {"apply": "proximal", "lam": 1.0},
    {"apply": "proximal", "lam": 0.05, "precondition": True},
]
applications = pytest.mark.parametrize("options", APPLICATIONS, ids=lambda o: "-".join(map(str, o.values())))


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 700), nn.GELU(), nn.Linear(700, 5))


def groups(net: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    return [{"params": matrices, "lr": 3e-3, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def constraint(net: nn.Module, **options: Any) -> rdo.RateConstraint:
    return rdo.RateConstraint([(n, p) for n, p in net.named_parameters() if p.ndim > 1], **options)


def loss_of(net: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randint(0, 50, (64,), generator=generator)
    return nn.functional.cross_entropy(net(inputs), inputs % 5)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@applications
@pytest.mark.parametrize("pooling", ["global", "tensor"])
def test_it_does_what_adamw_with_an_attached_constraint_does(options: dict[str, Any], pooling: str) -> None:
    options = {**options, "pooling": pooling}
    lam = options.pop("lam")
    first, second = model(), model()
    plain = torch.optim.AdamW(groups(first), lr=1e-3, eps=1e-6)
    handle = rdo.attach(plain, first, lam=lam, verbose=False, **options)
    fused = RateAdamW(groups(second), lr=1e-3, eps=1e-6, rate=constraint(second, lam=lam, **options))
    start = weights(first)
    train(first, plain, range(12))
    train(second, fused, range(12))
    assert float((weights(first) - start).abs().max()) > 0.01
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-4, atol=2e-5)
    theirs, ours = handle.rate(), fused.rate.report()
    assert ours.step == theirs.step == 12
    assert ours.surrogate_bits_per_parameter == pytest.approx(theirs.surrogate_bits_per_parameter, rel=1e-4)
    assert ours.theta == pytest.approx(theirs.theta, rel=1e-4)


def test_without_a_rate_it_is_adamw() -> None:
    first, second = model(), model()
    plain = torch.optim.AdamW(groups(first), lr=1e-3)
    fused = RateAdamW(groups(second), lr=1e-3, rate=constraint(second, lam=OnThenOff(1.0, 0)))
    train(first, plain, range(10))
    train(second, fused, range(10))
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-5, atol=1e-6)


@applications
def test_it_resumes_to_the_bit(options: dict[str, Any]) -> None:
    """Also where the law was fitted from sums gathered in the step, and after it from the weights."""
    whole = model()
    optimizer = RateAdamW(groups(whole), lr=1e-3, rate=constraint(whole, **options))
    train(whole, optimizer, range(5))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), optimizer.rate.state_dict()))
    train(whole, optimizer, range(5, 10))
    resumed = model(seed=1)
    again = RateAdamW(groups(resumed), lr=1e-3, rate=constraint(resumed, **options))
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again.rate.load_state_dict(saved[2])
    train(resumed, again, range(5, 10))
    assert torch.equal(weights(resumed), weights(whole))


def test_a_weight_changed_between_steps_is_seen_by_the_next_fit() -> None:
    net = model()
    optimizer = RateAdamW(net.parameters(), rate=constraint(net, lam=0.1))
    train(net, optimizer, range(2))
    before = float(optimizer.rate.fit()[1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    assert float(optimizer.rate.fit()[1]) == pytest.approx(3.0 * before)


def test_the_gathered_sums_spare_the_next_step_its_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import rdo_kernels

    calls = []
    real = rdo_kernels.moments
    monkeypatch.setattr(rdo_kernels.operations, "moments", lambda *a, **k: calls.append(1) or real(*a, **k))
    net = model()
    train(net, RateAdamW(net.parameters(), rate=constraint(net, lam=0.1)), range(5))
    assert len(calls) == 1


def test_maximize_climbs() -> None:
    net = model()
    optimizer = RateAdamW(net.parameters(), lr=1e-2, maximize=True, rate=constraint(net, lam=0.0))
    before = float(loss_of(net, 0).detach())
    train(net, optimizer, range(5))
    assert float(loss_of(net, 0).detach()) > before + 0.1


def test_a_covered_parameter_without_a_gradient_feels_the_rate_alone() -> None:
    net = model()
    unused = nn.Parameter(torch.randn(30, 30))
    pairs = [*((n, p) for n, p in net.named_parameters() if p.ndim > 1), ("unused", unused)]
    optimizer = RateAdamW([*net.parameters(), unused], rate=rdo.RateConstraint(pairs, lam=0.1, apply="gradient"))
    start = unused.detach().clone()
    train(net, optimizer, range(5))
    moved = start.abs() - unused.detach().abs()
    assert float(moved[start.abs() > 0.01].min()) > 0.0


def test_a_gradient_scaler_is_followed() -> None:
    """Scaled gradients are unscaled in the step, and a step with infinite gradients is no step."""
    first, second = model(), model()
    plain = RateAdamW(first.parameters(), rate=constraint(first, lam=0.1))
    scaled = RateAdamW(second.parameters(), rate=constraint(second, lam=0.1))
    train(first, plain, range(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        scaled.zero_grad()
        scaler.scale(loss_of(second, step)).backward()
        scaler.step(scaled)
        scaler.update()
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-5, atol=1e-7)
    before = weights(second)
    scaled.zero_grad()
    scaler.scale(loss_of(second, 3)).backward()
    next(second.parameters()).grad[0, 0] = float("inf")
    scaler.step(scaled)
    scaler.update()
    assert torch.equal(weights(second), before)
    assert scaled.rate.step == 3


def test_a_closure_is_evaluated_with_gradients() -> None:
    net = model()
    optimizer = RateAdamW(net.parameters(), rate=constraint(net, lam=0.1))

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return float(loss.detach())

    before = weights(net)
    assert optimizer.step(closure) == pytest.approx(float(loss_of(model(), 0).detach()))
    assert not torch.equal(weights(net), before)


def test_what_cannot_work_is_refused() -> None:
    net = model()
    with pytest.raises(ConfigError, match=r"covers 0\.weight.*does not have"):
        RateAdamW(list(net.parameters())[1:], rate=constraint(net, lam=0.1))
    with pytest.raises(ConfigError, match="lr must be 0 or more, got -1"):
        RateAdamW(net.parameters(), lr=-1.0, rate=constraint(net, lam=0.1))
    with pytest.raises(ConfigError, match="betas"):
        RateAdamW(net.parameters(), betas=(0.9, 1.0), rate=constraint(net, lam=0.1))
    optimizer = RateAdamW(net.parameters(), rate=constraint(net, lam=0.1))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"0\.weight"):
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_the_authors_order_step_by_step(fused: bool) -> None:
    """AdamW's step, then nu of all covered weights as they are now, then w -= lam nu / N sign(w) (|w| + 1)^(nu - 1)."""
    options: dict[str, Any] = {"apply": "decoupled", "lam": 2.0, "units": "paper", "fit_to": "after"}
    law = GeneralizedGaussian(eps=1.0)
    ours, theirs = model(), model()
    if fused:
        optimizer: torch.optim.Optimizer = RateAdamW(groups(ours), rate=constraint(ours, entropy_model=law, **options))
    else:
        optimizer = torch.optim.AdamW(groups(ours))
        rdo.attach(optimizer, ours, entropy_model=law, verbose=False, **options)
    reference = torch.optim.AdamW(groups(theirs))
    for step in range(10):
        train(ours, optimizer, range(step, step + 1))
        train(theirs, reference, range(step, step + 1))
        with torch.no_grad():
            covered = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
            flat = torch.cat([parameter.flatten() for parameter in covered]).double()
            shape = float(solve_shape(flat.square().mean() / flat.abs().mean().square()))
            for parameter in covered:
                slope = parameter.sign() * (parameter.abs() + 1.0) ** (shape - 1.0)
                parameter.sub_(2.0 * shape / flat.numel() * slope)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=2e-5, atol=2e-6)


def test_master_weights_keep_small_steps_and_resume_to_the_bit() -> None:
    def make() -> tuple[nn.Module, RateAdamW]:
        net = model().bfloat16()
        rate = constraint(net, lam=0.05, apply="proximal", precondition=True)
        return net, RateAdamW(net.parameters(), lr=1e-5, weight_decay=0.0, rate=rate, master_weights=True)

    whole, optimizer = make()
    train(whole, optimizer, range(5))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), optimizer.rate.state_dict()))
    train(whole, optimizer, range(5, 10))
    master = optimizer.state[whole[0].weight]["master"]
    start = model()[0].weight.detach().bfloat16().float()
    assert int((master - start).abs().gt(1e-6).sum()) > 0.9 * master.numel(), "small steps were lost"
    assert torch.equal(whole[0].weight, master.bfloat16())
    resumed, again = make()
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again.rate.load_state_dict(saved[2])
    assert again.state[resumed[0].weight]["exp_avg"].dtype == torch.float32
    train(resumed, again, range(5, 10))
    assert torch.equal(again.state[resumed[0].weight]["master"], master)


def test_weights_loaded_into_a_model_replace_the_master_weights() -> None:
    net = model().bfloat16()
    optimizer = RateAdamW(net.parameters(), lr=1e-6, rate=constraint(net, lam=0.1), master_weights=True)
    train(net, optimizer, range(2))
    other = model(seed=5).bfloat16()
    net.load_state_dict(other.state_dict())
    train(net, optimizer, range(2, 3))
    torch.testing.assert_close(weights(net).float(), weights(other).float(), rtol=1e-2, atol=1e-3)


def test_a_parameter_may_miss_some_steps() -> None:
    """Its own count of steps, and with it Adam's bias correction, is that of torch."""
    first, second = model(), model()
    plain = torch.optim.AdamW(first.parameters(), lr=1e-2)
    fused = RateAdamW(second.parameters(), lr=1e-2, rate=constraint(second, lam=0.0))
    for step in range(6):
        for net, optimizer in ((first, plain), (second, fused)):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            if step % 2:
                net[3].bias.grad = None
            optimizer.step()
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-5, atol=1e-6)
    assert float(fused.state[second[3].bias]["step"]) == 3.0
