"""Options, errors, reports and the saved state of the constraint."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import rdo
import rdo_kernels
from rdo.constraint import RateConstraint
from rdo.control import OnThenOff, WarmUp
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.errors import ConfigError, NonFiniteWeightsError
from rdo.optim import RateAdamW
from rdo.quantizers import RelativeQuantizer, UniformQuantizer
from tests.training import parameters, set_gradients, snapshot, step


@pytest.mark.parametrize("lam", [-1.0, math.nan, math.inf, lambda step: -1.0], ids=["-1", "nan", "inf", "schedule"])
def test_impossible_lambdas_are_refused_at_once(lam: object) -> None:
    with pytest.raises(ConfigError, match=r"lambda must be a number of 0 or more, got .* at step 0"):
        RateConstraint(parameters((2, 2)), lam=lam)


def test_a_schedule_that_goes_wrong_later_says_when() -> None:
    pairs = parameters((2, 2))
    optimizer = torch.optim.SGD([p for _, p in pairs], lr=0.1)
    constraint = RateConstraint(pairs, lam=lambda step: 1.0 if step < 2 else math.nan)
    step(constraint, optimizer)
    step(constraint, optimizer)
    with pytest.raises(ConfigError, match="got nan at step 2"):
        step(constraint, optimizer)


def test_weights_that_are_not_finite_stop_the_training_before_they_spoil_the_rest() -> None:
    pairs = parameters((3, 3), (4,))
    set_gradients(pairs)
    with torch.no_grad():
        pairs[1][1][2] = math.nan
    before = pairs[0][1].detach().clone()
    constraint = RateConstraint(pairs, lam=1.0)
    with pytest.raises(NonFiniteWeightsError, match=r"layer\.1: weights are NaN or infinite at step 0"):
        step(constraint, torch.optim.SGD([p for _, p in pairs], lr=0.1))
    assert torch.equal(pairs[0][1], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apply": "hard"}, "apply must be one of gradient, decoupled, proximal; got 'hard'"),
        ({"units": "nats"}, "units must be one of bits, paper"),
        ({"pooling": "row"}, "pooling must be one of global, tensor"),
        ({"scale_by_lr": True}, "scale_by_lr=True goes with"),
        ({"precondition": True, "apply": "decoupled"}, "precondition=True goes with"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RateConstraint(parameters((2, 2)), lam=1.0, **options)


def test_nothing_and_duplicates_are_refused() -> None:
    pairs = parameters((2, 2))
    with pytest.raises(ConfigError, match="covers no weights"):
        RateConstraint([], lam=1.0)
    with pytest.raises(ConfigError, match="covers no weights"):
        RateConstraint(parameters((0, 3)), lam=1.0)
    with pytest.raises(ConfigError, match="given twice"):
        RateConstraint([*pairs, ("tied", pairs[0][1])], lam=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_warned_of_where_steps_get_lost(dtype: torch.dtype) -> None:
    def train(dtype: torch.dtype, apply: str, **options: Any) -> None:
        pairs = parameters((2, 2), dtype=dtype)
        RateAdamW([pairs[0][1]], rate=RateConstraint(pairs, lam=1.0, apply=apply), **options)

    for apply in ("decoupled", "proximal"):
        with pytest.warns(UserWarning, match="16-bit weights"):
            train(dtype, apply)
    model = nn.Linear(3, 3).to(dtype)
    with pytest.warns(UserWarning, match="16-bit weights"):
        rdo.attach(torch.optim.SGD(model.parameters()), model, lam=1.0, apply="proximal", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(dtype, "gradient")
        train(dtype, "proximal", master_weights=True)
        train(torch.float32, "proximal")


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    constraint = RateConstraint([("weight", embedding.weight)], lam=1.0)
    with pytest.raises(ConfigError, match="sparse gradients"):
        constraint.before_step(torch.optim.SGD(embedding.parameters(), lr=0.1))


def test_report_describes_the_last_step() -> None:
    pairs = parameters((30, 40), (50,))
    constraint = RateConstraint(pairs, lam=WarmUp(1.0, 2))
    assert constraint.report().step == 0
    assert math.isnan(constraint.report().theta["shape"])
    optimizer = torch.optim.SGD([p for _, p in pairs], lr=0.1)
    theta = constraint.fit().tolist()
    rate = constraint.surrogate_rate()
    step(constraint, optimizer)
    report = constraint.report()
    assert (report.step, report.lam, report.parameters) == (1, 0.5, 1250)
    assert report.theta == dict(zip(("shape", "scale"), theta, strict=True))
    assert report.surrogate_bits_per_parameter == pytest.approx(rate, rel=1e-12)
    w = torch.cat([p.detach().reshape(-1) for _, p in pairs])
    mean = float(GeneralizedGaussian().surrogate(w, constraint.fit()).mean())
    assert constraint.surrogate_rate() == pytest.approx(mean, rel=1e-12)


def test_coded_rate_is_the_entropy_of_each_tensors_symbols() -> None:
    pairs = [("a", torch.tensor([[0.0, 1.0, 1.0, 2.0]])), ("b", torch.tensor([[5.0, 5.0]])), ("c", torch.zeros(0, 2))]
    constraint = RateConstraint(pairs, lam=1.0)
    assert constraint.coded_rate(UniformQuantizer(step=1.0)) == pytest.approx(4 * 1.5 / 6)
    assert constraint.coded_rate(RelativeQuantizer(ratio=0.01)) == pytest.approx(4 * 1.5 / 6)


@pytest.mark.parametrize(
    "options",
    [
        {"apply": "gradient"},
        {"apply": "gradient", "pooling": "tensor", "lam": OnThenOff(0.5, 7)},
        {"apply": "decoupled", "units": "paper", "scale_by_lr": True},
        {"apply": "proximal", "precondition": True},
    ],
    ids=str,
)
def test_resumes_bit_exactly(options: dict[str, object]) -> None:
    """Ten steps equal five, a save through JSON, a new process's objects, and five more."""
    options = {"lam": 0.5, **options}

    def build() -> tuple[list[tuple[str, nn.Parameter]], torch.optim.Optimizer, RateConstraint, object]:
        pairs = parameters((20, 30), (40,), dtype=torch.float32)
        groups = [{"params": [p], "lr": lr} for (_, p), lr in zip(pairs, (0.01, 0.02), strict=True)]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 3) * 0.8**n)
        return pairs, optimizer, RateConstraint(pairs, **options), schedule

    def run(training: tuple, steps: range) -> None:
        pairs, optimizer, constraint, schedule = training
        for index in steps:
            set_gradients(pairs, index)
            step(constraint, optimizer)
            schedule.step()

    straight = build()
    run(straight, range(10))
    first, second = build(), build()
    run(first, range(5))
    for (_, old), (_, new) in zip(first[0], second[0], strict=True):
        new.data.copy_(old)
    second[1].load_state_dict(first[1].state_dict())
    second[3].load_state_dict(first[3].state_dict())
    second[2].load_state_dict(json.loads(json.dumps(first[2].state_dict())))
    run(second, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(snapshot(straight[0]), snapshot(second[0]), strict=True))
    assert straight[2].report() == second[2].report()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"apply": "proximal"}, "cannot resume: apply was gradient .* and is proximal now"),
        ({"units": "paper"}, "units was bits"),
        ({"pooling": "tensor"}, "pooling was global"),
        ({"entropy_model": GeneralizedGaussian(eps=0.5)}, "entropy_model was"),
        ({"named_parameters": parameters((2, 3))}, "parameters was 4 when the state was saved and is 6 now"),
    ],
)
def test_a_state_of_other_settings_is_refused(changed: dict[str, object], message: str) -> None:
    state = RateConstraint(parameters((2, 2)), lam=1.0).state_dict()
    other = RateConstraint(**{"named_parameters": parameters((2, 2)), "lam": 1.0, **changed})
    with pytest.raises(ConfigError, match=message):
        other.load_state_dict(state)


def test_moments_are_named_in_the_order_that_laws_read() -> None:
    assert rdo_kernels.MOMENTS == ("count", "sum_abs", "sum_sq", "zeros", "max_abs")
