"""Steps of rows and columns: how they follow from gradients, and a training in which matrices have them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.attach import TargetAttachment
from rdo.channel_sensitivity import SHARE, ChannelSensitivity
from rdo.channels import ChannelSteps, channels_of
from rdo.coding_grid import CodingGrid
from rdo.compensated_rounding import CompensatedRounding
from rdo.compensation import Factor, compensate, in_steps
from rdo.errors import ConfigError
from rdo.rounding_plan import Rounded

SIZE = 64


def steps_for(gradients: list[Tensor], share: float = SHARE) -> dict[str, ChannelSteps]:
    """What follows from gradients of one tensor, step after step."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    sensitivity = ChannelSensitivity({"w": weight})
    for gradient in gradients:
        weight.grad = gradient
        sensitivity.add()
    return sensitivity.steps(share)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_rows_with_large_gradients_get_fine_steps() -> None:
    """Gradients in the ratio 1 to 16: steps differ by two octaves, half as many."""
    size = torch.cat([torch.ones(20), 16.0 * torch.ones(20)]).unsqueeze(1)
    [found] = steps_for([size * noise(40, 500, seed=seed) for seed in range(5)]).values()
    assert found.axis == "rows"
    steps = found.tensor()
    assert steps.shape == (40,)
    ratio = steps[:20].log2().mean() - steps[20:].log2().mean()
    assert float(ratio) == pytest.approx(2.0, abs=0.3), "half octaves, each rounded"
    [turned] = steps_for([(size * noise(40, 500, seed=seed)).T for seed in range(5)]).values()
    assert turned.axis == "columns"
    assert torch.equal(turned.tensor(), steps.unsqueeze(0))
    experts = steps_for([(size * noise(40, 500, seed=seed)).view(4, 10, 500) for seed in range(5)])
    assert torch.equal(experts["w"].exponents, found.exponents)


def test_steps_are_half_as_far_apart_as_gradients_ask_for_or_as_is_said() -> None:
    """Gradients in the ratio 1 to 8: one and a half octaves for three; in the ratio 1 to 4 all of two."""
    for ratio, share, apart in ((8.0, SHARE, 1.5), (8.0, 0.5, 1.5), (4.0, 1.0, 2.0)):
        size = torch.cat([torch.ones(20), ratio * torch.ones(20)]).unsqueeze(1)
        octaves = steps_for([size * noise(40, 500, seed=seed) for seed in range(5)], share)["w"].tensor().log2()
        difference = float(octaves[:20].mean() - octaves[20:].mean())
        assert difference == pytest.approx(apart, abs=0.3), "half octaves, each rounded"
    # 0.16 bits a weight are to be saved, of which a tenth of the way saves a fifth: too little for such a tensor.
    near = torch.cat([torch.ones(20), 2.0 * torch.ones(20)]).unsqueeze(1)
    gradients = [near * noise(40, 500, seed=seed) for seed in range(20)]
    assert steps_for(gradients, 1.0)
    assert not steps_for(gradients, 0.1)


@pytest.mark.parametrize("share", [SHARE, 1.0])
def test_no_step_is_farther_than_two_octaves(share: float) -> None:
    size = torch.tensor([1e-4, 1.0, 1.0, 1.0]).repeat(10).unsqueeze(1)
    [found] = steps_for([size * noise(40, 500)], share).values()
    assert set(found.exponents.tolist()) <= {4, 0, -1}


def test_channels_that_save_nothing_or_of_which_nothing_is_known_have_none() -> None:
    assert not steps_for([noise(40, 500)])
    few = torch.tensor([1.0, 2.0]).repeat(100).unsqueeze(1) * noise(200, 4)
    assert not steps_for([few]), "a step of four bits for four weights"
    kernels = torch.tensor([1e-3, 1.0]).repeat(2048).view(64, 64, 1) * noise(64, 64, 5)
    assert not steps_for([kernels]), "rows of a convolution, in which high rates would save more than that"
    size = torch.cat([torch.zeros(1), torch.ones(20), 4.0 * torch.ones(19)]).unsqueeze(1)
    assert not steps_for([size * noise(40, 500)]), "one row met no gradient"
    assert not ChannelSensitivity({"bias": nn.Parameter(torch.zeros(9))}).steps()


def test_a_grid_rounds_each_channel_to_its_step(tmp_path: Path) -> None:
    model = nn.ParameterDict({"rows": noise(30, 70), "columns": noise(7, 80, seed=1), "one": noise(9, 9, seed=2)})
    before = {name: value.detach().clone() for name, value in model.items()}
    channels = channels_of({"rows": ["rows", [-2, 3] * 15], "columns": ["columns", [4] * 40 + [-3] * 40]})
    grid = CodingGrid(list(model), list(model.values()), [1.0, 0.5, 2.0], channels=channels)
    grid.move(-2.0)
    grid.round()
    one = dict(zip(grid.names, grid.steps.tolist(), strict=True))
    each = {name: one[name] * (channels[name].tensor() if name in channels else torch.ones(())) for name in model}
    each["rows"] = each["rows"].unsqueeze(1)
    for name, value in model.items():
        assert torch.equal(value.detach(), (before[name] / each[name]).round() * each[name]), name
    assert grid.moments is not None
    squares = [float(before[name].double().square().sum()) for name in grid.names]
    assert grid.moments[:, 2].tolist() == pytest.approx(squares, rel=1e-6)
    symbols = [(before[name] / each[name]).round() for name in model]
    wanted = sum(entropy(each_one) * each_one.numel() for each_one in symbols) / grid.count
    assert float(grid.entropy_bits()) == pytest.approx(wanted, rel=1e-6)
    rdo.save_compressed(model, tmp_path / "model.rdo", quantizer=grid.quantizer(2.0))
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value.detach()) for name, value in model.items())
    grid.restore()
    assert all(torch.equal(value.detach(), before[name]) for name, value in model.items())


def entropy(symbols: Tensor) -> float:
    counts = torch.unique(symbols, return_counts=True)[1].double()
    return float((counts / counts.sum() * (counts.sum() / counts).log2()).sum())


def test_compensation_in_steps_of_columns_has_the_error_of_the_weights_themselves() -> None:
    """With steps that differ the layer's own error, in the units of the weights, must fall."""
    x = noise(512, 5, seed=3) @ noise(5, 60, seed=4) + 0.3 * noise(512, 60, seed=5)
    gram, matrix = x.T @ x / len(x), 3.0 * noise(17, 60, seed=6)
    steps = torch.exp2(torch.linspace(-2.0, 2.0, 60)).unsqueeze(0)

    def error(rounded: Tensor) -> float:
        left = matrix - rounded
        return float((left @ gram * left).sum())

    symbols, _ = compensate(matrix / steps, Factor(in_steps(gram, steps)).at(matrix / steps), lambda c, _: c.round())
    wrong, _ = compensate(matrix / steps, Factor(gram).at(matrix / steps), lambda c, _: c.round())
    nearest = error((matrix / steps).round() * steps)
    assert error(symbols * steps) < 0.8 * nearest
    assert error(symbols * steps) < 0.95 * error(wrong * steps)
    rows = torch.exp2(torch.linspace(-1.0, 1.0, 17)).unsqueeze(1)
    assert in_steps(gram, rows) is gram


class Gated(nn.Module):
    """Hidden units of very different worth: the output layer looks at some of them only a little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(SIZE, 128)
        self.out = nn.Linear(128, 5)
        self.register_buffer("worth", torch.exp2(torch.linspace(-5.0, 0.0, 128)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.tanh(self.hidden(x)) * self.worth)
        return result


def batch(step: int) -> tuple[Tensor, Tensor]:
    inputs = noise(64, SIZE, seed=step)
    return inputs, (inputs @ noise(SIZE, 5, seed=99)).argmax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def sized(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, TargetAttachment]:
    model = Gated()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    options = {"start": 40, "coder": ["rans", "context"], **options}
    handle = rdo.attach(optimizer, model, bits_per_parameter=2.5, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    return model, optimizer, handle


def test_a_training_finds_channels_and_meets_its_size(tmp_path: Path) -> None:
    model, optimizer, handle = sized()
    train(model, optimizer, range(100))
    assert handle.target.grid is not None
    found = {name: own.axis for name, own in handle.target.grid.channels.items()}
    assert found == {"hidden.weight": "rows"}, "640 weights of the output layer are not worth a header's 150 bytes"
    exponents = handle.target.grid.channels["hidden.weight"].exponents.float()
    assert exponents[:32].mean() > exponents[-32:].mean() + 2.0, "units of little worth have coarse steps"
    assert 0.99 * 2.5 <= handle.save(tmp_path / "model.rdo").bits_per_parameter <= 2.5
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stopped", [30, 55], ids=["measuring", "rounded"])
def test_resuming_gives_the_same_bits(stopped: int) -> None:
    model, optimizer, handle = sized()
    train(model, optimizer, range(stopped))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    train(model, optimizer, range(stopped, 80))
    other, resumed, second = sized()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(other, resumed, range(stopped, 80))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_rounding_after_training_with_channels_loses_less_at_the_same_size(tmp_path: Path) -> None:
    """Of the same file: the error of rounding is where the loss looks least."""
    model = Gated()
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), range(150))
    losses = []
    for channels in (False, True):
        twin = copy.deepcopy(model)
        batches = [batch(step) for step in range(500, 516)]
        rounding = CompensatedRounding(
            twin, batches, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), channels=channels
        )

        def size(rounded: Rounded, twin: nn.Module = twin) -> float:
            rounded.fill(twin)
            quantizer = rounded.quantizer(3.0)
            return rdo.save_compressed(twin, None, quantizer=quantizer, coder=["rans", "context"]).bits_per_parameter

        rounded = rounding.search(3.0, size)
        rounded.fill(twin)
        path = tmp_path / f"{channels}.rdo"
        info = rdo.save_compressed(twin, path, quantizer=rounded.quantizer(3.0), coder=["rans", "context"])
        assert 0.98 * 3.0 <= info.bits_per_parameter <= 3.0
        decoded = rdo.load_compressed(path)
        assert all(torch.equal(decoded[name], value) for name, value in twin.state_dict().items())
        inputs, _ = batch(5000)
        with torch.no_grad():
            losses.append(
                float(
                    nn.functional.kl_div(
                        twin(inputs).log_softmax(1),
                        model(inputs).log_softmax(1),
                        log_target=True,
                        reduction="batchmean",
                    )
                )
            )
        assert bool(rounded.channels) == channels
    assert losses[1] < 0.8 * losses[0]


def test_a_coder_with_one_table_goes_without() -> None:
    for options in ({"coder": "rans"}, {"channels": False}, {"allocation": "scale"}):
        model, optimizer, handle = sized(**options)
        train(model, optimizer, range(45))
        assert handle.target.grid is not None
        assert not handle.target.grid.channels
    with pytest.raises(ConfigError, match="give channels=False"):
        sized(channels=True, allocation="scale")
