"""rdo.attach inside ordinary training loops: accumulation, clipping, scalers, tied and frozen weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.errors import ConfigError


class Tied(nn.Module):
    """An embedding whose weights are also the output layer, a norm, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.hidden(self.frozen(self.embed(x)))).tanh())


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


def loss_of(model: nn.Module, items: slice = slice(None)) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(32, 6, generator=generator)
    labels = torch.randint(0, 3, (32,), generator=generator)
    return nn.functional.cross_entropy(model(inputs[items]), labels[items])


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor], tolerance: float = 0.0) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> rdo.Attachment:
    return rdo.attach(optimizer, model, **{"lam": 0.5, "verbose": False, **options})


def rate_gradient(model: nn.Module, lam: float = 0.5) -> list[Tensor]:
    """lam * slope / N of the matrices, by hand; zero for the rest."""
    matrices = [(str(i), p) for i, p in enumerate(model.parameters()) if p.ndim >= 2]
    constraint = rdo.RateConstraint(matrices, lam=lam)
    theta, law = constraint.fit(), constraint.entropy_model
    return [
        lam / constraint.count * law.slope(p.detach(), theta) if p.ndim >= 2 else torch.zeros_like(p)
        for p in model.parameters()
    ]


def test_one_line_changes_every_step_and_remove_ends_it() -> None:
    model, plain = mlp(), mlp()
    optimizer, other = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    handle = attach(model, optimizer)
    for _ in range(3):
        before, added = weights_of(model), rate_gradient(model)
        loss_of(model).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        expected = [w - 0.1 * (g + a) for w, g, a in zip(before, gradients, added, strict=True)]
        same(weights_of(model), expected, 1e-6)
    assert handle.rate().step == 3
    plain.load_state_dict(model.state_dict())
    handle.remove()
    for m, o in ((model, optimizer), (plain, other)):
        loss_of(m).backward()
        o.step()
    same(weights_of(model), weights_of(plain))
    assert handle.rate().step == 3
    handle.remove()


def test_the_term_enters_once_under_gradient_accumulation() -> None:
    one, two = mlp(), mlp()
    for model, batches in ((one, [slice(None)]), (two, [slice(0, 16), slice(16, 32)])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        for _ in range(2):
            for items in batches:
                (loss_of(model, items) / len(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
    same(weights_of(one), weights_of(two), 1e-6)


def test_the_term_enters_after_clipping() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, lam=100.0)
    before, added = weights_of(model), rate_gradient(model, 100.0)
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    same(weights_of(model), [w - 0.1 * (g + a) for w, g, a in zip(before, clipped, added, strict=True)], 1e-6)
    assert sum(float(a.square().sum()) for a in added) ** 0.5 > 1.0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_a_grad_scaler_changes_nothing_but_skips(fused: bool, unscale: bool, apply: str) -> None:
    """With a scaler of 1024, unscaled by hand or not, the weights are those of a run without one."""
    plain, scaled = mlp(), mlp()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01, fused=fused) for m in (plain, scaled)]
    handles = [attach(m, o, apply=apply) for m, o in zip((plain, scaled), optimizers, strict=True)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        loss_of(plain).backward()
        optimizers[0].step()
        scaler.scale(loss_of(scaled)).backward()
        if unscale:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
    same(weights_of(scaled), weights_of(plain), 2e-6)
    assert handles[1].rate().step == 3

    before = weights_of(scaled)
    scaler.scale(loss_of(scaled)).backward()
    scaled[0].weight.grad[0, 0] = float("inf")
    if unscale:
        scaler.unscale_(optimizers[1])
    scaler.step(optimizers[1])
    scaler.update()
    same(weights_of(scaled), before)
    assert handles[1].rate().step == 3, "a skipped step was counted"


def test_tied_weights_are_covered_once_and_frozen_ones_never() -> None:
    model = Tied()
    frozen = model.frozen.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, parameters="all")
    names = handle.constraint.names
    assert names == ["embed.weight", "norm.weight", "norm.bias", "hidden.weight", "hidden.bias"]
    assert attach(model, optimizer).constraint.names == ["embed.weight", "hidden.weight"]
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert torch.equal(model.frozen.weight, frozen)
    assert model.head.weight is model.embed.weight


def test_parameters_without_a_gradient_feel_the_rate() -> None:
    """A covered weight that the loss did not touch still costs bits."""
    for apply in ("gradient", "decoupled", "proximal"):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer, apply=apply)
        before, added = weights_of(model), rate_gradient(model)
        optimizer.step()
        factor = 1.0 if apply == "decoupled" else 0.1
        expected = [w - w.clamp(-factor * a.abs(), factor * a.abs()) for w, a in zip(before, added, strict=True)]
        if apply == "proximal":
            same(weights_of(model), expected, 1e-7)
        else:
            same(weights_of(model), [w - factor * a for w, a in zip(before, added, strict=True)], 1e-7)
        assert not torch.equal(model[0].weight, before[0])


def test_only_what_the_optimizer_updates_is_covered() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert attach(model, optimizer, parameters="all").constraint.names == ["0.weight", "0.bias"]


def test_a_function_selects_parameters() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = attach(model, optimizer, parameters=lambda name, p: name.startswith("2.") and p.ndim == 1)
    assert chosen.constraint.names == ["2.bias"]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (mlp(), {"parameters": lambda name, p: False}, "nothing: of the model's 4 parameters, 4 are trainable"),
        (mlp().requires_grad_(False), {}, "of the model's 4 parameters, 0 are trainable"),
        (nn.LayerNorm(4), {}, "the selection 'matrices' takes none of them"),
        (nn.Linear(0, 3, bias=False), {}, "would cover nothing"),
        (mlp(), {"parameters": "weights"}, "parameters must be 'matrices', 'all' or a function .* got 'weights'"),
        (mlp(), {"lam": -1.0}, "lambda must be a number of 0 or more"),
        (mlp(), {"apply": "prox"}, "apply must be one of"),
    ],
)
def test_refuses_what_cannot_work(model: nn.Module, options: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=message):
        attach(model, optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks


def test_prints_what_is_covered(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)), nn.Linear(4, 2))
    rdo.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, lam=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "rdo: gradient rate constraint, generalized_gaussian, covers 13 of 26 parameters, 200 of 250 weights (80.0%)",
        "   12 x *.weight [4, 4]",
        "    1 x *.weight [2, 4]",
    ]


@pytest.mark.parametrize("options", [{}, {"apply": "proximal"}, {"lam": None, "bits_per_parameter": 47.0}])
@pytest.mark.parametrize("named", [False, True])
def test_a_closure_makes_the_gradients_that_the_term_enters(named: bool, options: dict[str, Any]) -> None:
    """As Lightning's. It sees the rounded weights of a size, and the optimizer the unrounded ones."""

    def trained(*, closed: bool) -> dict[str, Tensor]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        settings = {"target_options": {"start": 0}} if "bits_per_parameter" in options else {}
        attach(model, optimizer, **options, **settings)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(24):
            if closed:
                loss = optimizer.step(closure=closure) if named else optimizer.step(closure)
                assert isinstance(loss, Tensor)
            else:
                closure()
                optimizer.step()
        return weights_of(model)

    same(trained(closed=True), trained(closed=False))


def test_a_closure_that_is_called_twice_in_a_step_is_refused() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    attach(model, optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return float(loss)

    with pytest.raises(ConfigError, match="LBFGS calls its closure again within a step"):
        optimizer.step(closure)


def test_schedulers_and_the_attachments_state_work_together() -> None:
    """Five steps, a restart from the saved states, and five more equal ten."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any, rdo.Attachment]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        handle = attach(model, optimizer, apply="decoupled", scale_by_lr=True)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), handle

    def run(training: tuple[nn.Module, torch.optim.Optimizer, Any, rdo.Attachment]) -> None:
        model, optimizer, schedule, _ = training
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            schedule.step()

    straight, first, second = build(), build(), build()
    run(straight)
    run(straight)
    run(first)
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    run(second)
    same(weights_of(straight[0]), weights_of(second[0]))
    assert straight[3].rate() == second[3].rate()


def test_the_rate_falls_and_the_laws_shape_with_it() -> None:
    """At a lambda that matters, training still learns, at fewer coded bits than plain training, as the paper says."""
    coded, shapes = [], []
    for lam in (0.0, 0.2):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        handle = attach(model, optimizer, lam=lam)
        for _ in range(150):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        coded.append(handle.constraint.coded_rate(rdo.UniformQuantizer(step=2.0**-4)))
        shapes.append(float(handle.constraint.fit()[0]))
        assert float(loss_of(model).detach()) < 0.8  # that of chance is 1.1
    assert coded[1] < coded[0] - 1.0
    assert shapes[1] < shapes[0]
