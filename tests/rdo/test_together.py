"""Several optimizers that share a model: as one would do it, and sizes for Muon and AdamW together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import rdo
from rdo.attach import Attachment, TargetAttachment

WORDS, WIDTH, CLASSES = 64, 48, 5


class Classifier(nn.Module):
    """An embedding, which Muon does not take, two matrices and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.hidden = nn.Linear(WIDTH, 96)
        self.out = nn.Linear(96, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        hidden: Tensor = self.out(torch.tanh(self.hidden(self.words(words).mean(1))))
        return hidden


def loss_of(model: nn.Module, step: int) -> Tensor:
    words = torch.randint(WORDS, (64, 6), generator=torch.Generator().manual_seed(step))
    values = torch.randn(WORDS, CLASSES, generator=torch.Generator().manual_seed(99))
    return nn.functional.cross_entropy(model(words), values[words].sum(1).argmax(1))


def halves(model: nn.Module, **options: Any) -> list[Optimizer]:
    parameters = list(model.parameters())
    return [AdamW(parameters[:2], lr=3e-3, **options), AdamW(parameters[2:], lr=3e-3, **options)]


def train(model: nn.Module, optimizers: list[Optimizer], steps: int) -> float:
    """The mean loss of the last five steps."""
    losses = []
    for step in range(steps):
        loss = loss_of(model, step)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-5:]) / 5


SETTINGS = [
    {"lam": 0.3},
    {"lam": 0.3, "apply": "proximal", "precondition": True},
    {"lam": 3.0, "apply": "decoupled", "scale_by_lr": True, "fit_to": "after"},
    {"bits_per_parameter": 2.5, "target_options": {"start": 0}},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backwards", [False, True])
def test_two_optimizers_do_what_one_does(settings: dict[str, Any], backwards: bool) -> None:
    alone, shared = Classifier(), Classifier()
    one = AdamW(alone.parameters(), lr=3e-3)
    two = halves(shared)
    handles = [
        rdo.attach(one, alone, verbose=False, **settings),
        rdo.attach(two, shared, verbose=False, **settings),
    ]
    train(alone, [one], 45)
    train(shared, two[::-1] if backwards else two, 45)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, shared.state_dict()[name]), name
    assert handles[0].rate() == handles[1].rate()
    plain = Classifier()
    train(plain, [AdamW(plain.parameters(), lr=3e-3)], 45)
    assert not torch.equal(plain.hidden.weight, shared.hidden.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_changes_nothing(fused: bool) -> None:
    """A fused optimizer gets scaled gradients; for others all are unscaled before the first step, as documented."""

    def trained(scaler: torch.amp.GradScaler | None) -> Classifier:
        model = Classifier()
        optimizers = halves(model, fused=fused)
        rdo.attach(optimizers, model, lam=0.3, verbose=False)
        for step in range(5):
            model.zero_grad()
            if scaler is None:
                loss_of(model, step).backward()
                for optimizer in optimizers:
                    optimizer.step()
                continue
            scaler.scale(loss_of(model, step)).backward()
            for optimizer in optimizers:
                if not fused:
                    scaler.unscale_(optimizer)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        return model

    plain, scaled = trained(None), trained(torch.amp.GradScaler("cpu", init_scale=1024.0))
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, scaled.state_dict()[name], rtol=1e-6, atol=1e-8), name


def test_muon_and_adamw_train_a_whole_model_to_a_size(tmp_path: Path) -> None:
    def optimizers(model: Classifier) -> list[Optimizer]:
        matrices = [model.hidden.weight, model.out.weight]
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), AdamW(others, lr=1e-2)]

    model, plain = Classifier(), Classifier()
    both = optimizers(model)
    handle = rdo.attach(both, model, bits_per_parameter=3.0, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    assert handle.constraint.names == ["words.weight", "hidden.weight", "out.weight"]
    first = train(plain, optimizers(plain), 5)
    assert train(model, both, 120) < 0.7 * first
    assert 0.99 * 3.0 <= handle.save(tmp_path / "model.rdo").bits_per_parameter <= 3.0
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value) for name, value in model.state_dict().items())


def test_one_that_steps_twice_is_spoken_of() -> None:
    model = Classifier()
    first, second = halves(model)
    handle = rdo.attach([first, second], model, bits_per_parameter=3.0, verbose=False, target_options={"start": 0})
    loss_of(model, 0).backward()
    first.step()
    with pytest.warns(UserWarning, match="AdamW steps again before AdamW"):
        first.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.step()
        first.step()
        second.step()
    assert isinstance(handle, TargetAttachment)
    assert handle.target.step == 2, "rounds that were finished"


def test_a_round_goes_on_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The closure of the first of two fails: the round has not begun, and the next one is whole."""
    model = Classifier()
    first, second = halves(model)
    handle: Attachment = rdo.attach([first, second], model, lam=0.3)
    assert "covers 3 of 5 parameters" in capsys.readouterr().out

    def failing() -> float:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        first.step(failing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, [first, second], 2)
    assert handle.rate().step == 2
