"""What the constraint does to weights and gradients, against the formulas of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rdo.constraint import RateConstraint
from rdo.control import OnThenOff, WarmUp
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.lp import Lp
from rdo.errors import ConfigError
from tests.training import DTYPE, parameters, set_gradients, snapshot, step


def moved_alike(
    pairs: list[tuple[str, nn.Parameter]],
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    steps: int = 3,
    **options: object,
) -> tuple[list[list[Tensor]], list[list[Tensor]], torch.optim.Optimizer]:
    """Weights after the optimizer's own part of each step and after the rate's, on ``pairs``."""
    optimizer = build([parameter for _, parameter in pairs])
    constraint = RateConstraint(pairs, **options)
    plain, done = [], []
    for index in range(steps):
        set_gradients(pairs, index)
        constraint.before_step(optimizer)
        optimizer.step()
        plain.append(snapshot(pairs))
        constraint.after_step(optimizer)
        done.append(snapshot(pairs))
    return plain, done, optimizer


@pytest.mark.parametrize("pooling", ["global", "tensor"])
@pytest.mark.parametrize("model", [GeneralizedGaussian(), Lp(p=0.5), "laplace", "gaussian"], ids=str)
def test_gradient_is_that_of_the_cost(pooling: str, model: object) -> None:
    """One SGD step on D equals one on J = D + lam * mean(surrogate), theta held fixed."""
    pairs = parameters((30, 40), (70,), (5, 6, 7))
    target = torch.randn(30, 40, dtype=DTYPE)
    optimizer = torch.optim.SGD([p for _, p in pairs], lr=0.1)
    constraint = RateConstraint(pairs, model, lam=0.3, pooling=pooling)

    theta = constraint.fit()
    thetas = theta if pooling == "tensor" else theta.expand(3, -1)
    twins = [parameter.detach().clone().requires_grad_() for _, parameter in pairs]
    rate = sum(constraint.entropy_model.surrogate(w, t).sum() for w, t in zip(twins, thetas, strict=True))
    cost = (twins[0] - target).square().mean() + twins[1].sum() + 0.3 * rate / constraint.count
    cost.backward()

    ((pairs[0][1] - target).square().mean() + pairs[1][1].sum()).backward()
    step(constraint, optimizer)
    for (_, parameter), twin in zip(pairs, twins, strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(parameter.detach(), twin.detach() - 0.1 * twin.grad, rtol=1e-12, atol=0)
    mean = float(rate.detach()) / constraint.count
    assert constraint.report().surrogate_bits_per_parameter == pytest.approx(mean, rel=1e-12)


def test_gradient_in_the_papers_units_is_algorithm_1() -> None:
    pairs = parameters((50, 60), (300,))
    constraint = RateConstraint(pairs, GeneralizedGaussian(eps=0.02), lam=7.0, units="paper")
    shape = float(constraint.fit()[0])
    constraint.before_step(torch.optim.SGD([p for _, p in pairs], lr=1.0))
    for _, w in pairs:
        expected = 7.0 * shape / constraint.count * w.sign() * (w.abs() + 0.02) ** (shape - 1)
        torch.testing.assert_close(w.grad, expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_decoupled_is_the_authors_code(optimizer: type[torch.optim.Optimizer]) -> None:
    """lambda 2000, eps 1, one nu of all parameters as they were before the step, no learning rate, no clamp."""
    pairs = parameters((300, 400), (1000,), (64, 3, 7))
    model = GeneralizedGaussian(eps=1.0)
    count = sum(p.numel() for _, p in pairs)
    constraint = RateConstraint(pairs, model, lam=2000.0, units="paper", apply="decoupled")
    build = optimizer([p for _, p in pairs], lr=0.01)
    crossed = 0
    for index in range(3):
        set_gradients(pairs, index)
        shape = float(model.fit(sum_of_moments(pairs))[0])
        constraint.before_step(build)
        build.step()
        plain = snapshot(pairs)
        constraint.after_step(build)
        for (_, parameter), w in zip(pairs, plain, strict=True):
            expected = w - 2000 * shape / count * torch.sign(w) * (torch.abs(w) + 1) ** (shape - 1)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)
            crossed += int((parameter.detach() * w < 0).sum())
    assert crossed > 0


def sum_of_moments(pairs: list[tuple[str, nn.Parameter]]) -> Tensor:
    w = torch.cat([parameter.detach().reshape(-1) for _, parameter in pairs])
    return torch.stack([w.new_tensor(w.numel()), w.abs().sum(), w.square().sum(), w.new_zeros(()), w.abs().max()])


def test_decoupled_can_fade_with_the_learning_rate() -> None:
    """Each group by its own rate over the largest that the group has had."""
    pairs = parameters((40, 50), (60, 20))
    optimizer = torch.optim.SGD([{"params": [pairs[0][1]], "lr": 0.1}, {"params": [pairs[1][1]], "lr": 0.02}])
    model = Lp(p=1.0)
    constraint = RateConstraint(pairs, model, lam=5.0, units="paper", apply="decoupled", scale_by_lr=True)
    rates_and_shares = [((0.1, 0.02), (1, 1)), ((0.05, 0.04), (0.5, 1)), ((0.02, 0.01), (0.2, 0.25)), ((0, 0), (0, 0))]
    for rates, shares in rates_and_shares:
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        before = snapshot(pairs)
        step(constraint, optimizer)
        for (_, parameter), w, share in zip(pairs, before, shares, strict=True):
            expected = w - share * 5.0 / constraint.count * w.sign()
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-15)


def test_proximal_is_the_formula_and_makes_exact_zeros() -> None:
    pairs = parameters((60, 50), (400,))
    model = GeneralizedGaussian()
    optimizer = torch.optim.SGD([{"params": [pairs[0][1]], "lr": 0.5}, {"params": [pairs[1][1]], "lr": 0.1}])
    constraint = RateConstraint(pairs, model, lam=2.0, apply="proximal")
    for index in range(3):
        set_gradients(pairs, index)
        theta = constraint.fit()
        constraint.before_step(optimizer)
        optimizer.step()
        plain = snapshot(pairs)
        constraint.after_step(optimizer)
        for (_, parameter), w, lr in zip(pairs, plain, (0.5, 0.1), strict=True):
            threshold = lr * 2.0 / constraint.count * model.slope(w, theta).abs()
            expected = w.sign() * (w.abs() - threshold).clamp(min=0)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-15)
            assert bool((parameter.detach() * w >= 0).all())
            assert int((parameter == 0).sum()) == int((w.abs() <= threshold).sum()) > 0


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("capturable_step", [False, True])
def test_preconditioned_proximal_divides_as_adamw_does(amsgrad: bool, capturable_step: bool) -> None:
    pairs = parameters((40, 50), (30, 3))
    model, lr, beta, eps = GeneralizedGaussian(), 0.01, 0.95, 1e-4
    optimizer = torch.optim.AdamW(
        [p for _, p in pairs], lr=lr, betas=(0.9, beta), eps=eps, amsgrad=amsgrad, fused=capturable_step or None
    )
    constraint = RateConstraint(pairs, model, lam=0.5, apply="proximal", precondition=True)
    second = [torch.zeros_like(p) for _, p in pairs]
    largest = [torch.zeros_like(p) for _, p in pairs]
    for index in range(4):
        set_gradients(pairs, index)
        theta = constraint.fit()
        constraint.before_step(optimizer)
        optimizer.step()
        plain = snapshot(pairs)
        constraint.after_step(optimizer)
        for i, (_, parameter) in enumerate(pairs):
            second[i] = beta * second[i] + (1 - beta) * parameter.grad**2
            largest[i] = torch.maximum(largest[i], second[i])
            moment = largest[i] if amsgrad else second[i]
            denominator = (moment / (1 - beta ** (index + 1))).sqrt() + eps
            threshold = lr * 0.5 / constraint.count * model.slope(plain[i], theta).abs() / denominator
            expected = plain[i].sign() * (plain[i].abs() - threshold).clamp(min=0)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-14)


def test_precondition_needs_a_second_moment() -> None:
    pairs = parameters((3, 3))
    constraint = RateConstraint(pairs, lam=1.0, apply="proximal", precondition=True)
    set_gradients(pairs)
    with pytest.raises(ConfigError, match=r"needs an optimizer with a second moment .*; SGD keeps none"):
        step(constraint, torch.optim.SGD([p for _, p in pairs], lr=0.1))


def test_a_law_per_tensor_or_one_for_all() -> None:
    pairs = parameters((100, 100), (5000,))
    one = RateConstraint(pairs, lam=1.0)
    each = RateConstraint(pairs, lam=1.0, pooling="tensor")
    assert one.fit().shape == (2,)
    assert each.fit().shape == (2, 2)
    torch.testing.assert_close(one.fit(), GeneralizedGaussian().fit(sum_of_moments(pairs)))
    for index, pair in enumerate(pairs):
        torch.testing.assert_close(each.fit()[index], RateConstraint([pair], lam=1.0).fit())
    # A mixture of scales has heavier tails than its parts.
    assert float(one.fit()[0]) < 1.5 < float(each.fit()[:, 0].min())


@pytest.mark.parametrize("units", ["bits", "paper"])
def test_lambda_in_both_units(units: str) -> None:
    """The same step, whichever units lambda is in."""
    pairs = parameters((40, 40))
    model = GeneralizedGaussian()
    shape, scale = RateConstraint(pairs, model, lam=1.0).fit().tolist()
    lam = 3.0 if units == "bits" else 3.0 / scale**shape / math.log(2)
    constraint = RateConstraint(pairs, model, lam=lam, units=units)
    theta = constraint.fit()
    constraint.before_step(torch.optim.SGD([p for _, p in pairs], lr=1.0))
    torch.testing.assert_close(pairs[0][1].grad, 3.0 / 1600 * model.slope(pairs[0][1].detach(), theta))


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_phases_switch_the_rate_off(apply: str) -> None:
    """After OnThenOff's steps the optimizer moves alone."""

    def train(lam: object) -> list[list[Tensor]]:
        pairs = parameters((20, 30), dtype=torch.float32)
        return moved_alike(pairs, lambda ps: torch.optim.SGD(ps, lr=0.1), steps=4, lam=lam, apply=apply)[1]

    phased, constant, none = train(OnThenOff(0.5, 2)), train(0.5), train(0.0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(phased[:2], constant[:2], strict=True))
    assert not torch.equal(phased[2][0], constant[2][0])
    for run in (phased, none):
        plain_move = run[3][0] - run[2][0]
        torch.testing.assert_close(plain_move, none[3][0] - none[2][0], rtol=0, atol=1e-7)


def test_schedules() -> None:
    assert [OnThenOff(2.0, 3)(step) for step in range(5)] == [2.0, 2.0, 2.0, 0.0, 0.0]
    assert [WarmUp(2.0, 4)(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert WarmUp(2.0, 0)(0) == 2.0


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_lambda_zero_changes_no_bit(apply: str) -> None:
    pairs, twins = parameters((20, 30), (7,)), parameters((20, 30), (7,))
    _, done, _ = moved_alike(pairs, lambda ps: torch.optim.AdamW(ps), lam=0.0, apply=apply)
    optimizer = torch.optim.AdamW([p for _, p in twins])
    for index in range(3):
        set_gradients(twins, index)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(done[index], snapshot(twins), strict=True))
