"""Rounding after training: compensated columns against a direct computation, and a model rounded to an entropy."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import rdo
from rdo.calibration import calibrate, mean_loss
from rdo.coders import Histogram
from rdo.compensated_rounding import CompensatedRounding
from rdo.compensation import Factor, compensate
from rdo.errors import ConfigError
from rdo.rounding import round_to_entropy, round_to_loss, round_to_size
from rdo.rounding_plan import Rounded, RoundingPlan


def inputs_of(size: int, seed: int = 0) -> Tensor:
    """Strongly correlated inputs, as activations are; float32 [512, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(512, 5, generator=generator) @ torch.randn(5, size, generator=generator) + 0.3 * torch.randn(
        512, size, generator=generator
    )


def obs(matrix: Tensor, inputs: Tensor) -> Tensor:
    """Optimal Brain Surgeon column by column: the inverse Hessian of what is left is taken anew for every column."""
    plain = inputs.double() + 0.01 * inputs.double().diagonal().mean() * torch.eye(len(inputs), dtype=torch.float64)
    # What of an input those after it do not explain, and the error of rounding relative to the weights.
    left = [1.0 / torch.linalg.inv(plain[at:, at:])[0, 0] for at in range(len(inputs))]
    unexplained = float(torch.stack(left).mean() / inputs.diagonal().mean())
    errors = float((matrix - matrix.round()).square().mean() / matrix.square().mean())
    damping = max(2.0 ** (round(2.0 * math.log2(unexplained * errors)) / 2.0), 0.01)
    hessian = plain + (damping - 0.01) * inputs.double().diagonal().mean() * torch.eye(len(inputs), dtype=torch.float64)
    left, symbols = matrix.double().clone(), torch.empty_like(matrix, dtype=torch.float64)
    for column in range(matrix.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        symbols[:, column] = left[:, column].round()
        error = left[:, column] - symbols[:, column]
        left[:, column:] -= torch.outer(error / inverse[0, 0], inverse[0])
    return symbols


@pytest.mark.parametrize("size", [3, 40, 150])
def test_compensated_columns_against_the_direct_computation(size: int) -> None:
    x = inputs_of(size)
    gram = x.T @ x / len(x)
    matrix = 3.0 * torch.randn(17, size, generator=torch.Generator().manual_seed(1))
    symbols, values = compensate(matrix, Factor(gram).at(matrix), lambda column, _: column.round())
    expected = obs(matrix, gram)
    assert float((symbols.double() != expected).float().mean()) < 0.002, "but for values half-way between two symbols"
    assert torch.equal(values.round(), symbols)
    compensated, nearest = (((matrix - q) @ gram * (matrix - q)).sum() for q in (symbols, matrix.round()))
    assert float(compensated) < 0.8 * float(nearest)


def test_without_correlation_nothing_is_compensated() -> None:
    matrix = 3.0 * torch.randn(7, 30, generator=torch.Generator().manual_seed(1))
    symbols, values = compensate(matrix, Factor(torch.eye(30)).at(matrix), lambda column, _: column.round())
    assert torch.equal(symbols, matrix.round())
    torch.testing.assert_close(values, matrix)


def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), Conv1D(96, 96), nn.ReLU(), nn.Linear(96, 4))
    x = inputs_of(40)
    batches = list(zip(x.split(64), (x[:, :4].abs().argmax(1)).split(64), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for batch in batches:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return model, batches


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_of_many_inputs_the_first_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdo.calibration.ENOUGH", 2)  # 80 of the first layer's, 192 of the others'
    model, batches = trained()
    measured = calibrate(model, batches, loss_of, ["0.weight", "4.weight"])
    for name, count, inputs in (("0.weight", 128, nn.Identity()), ("4.weight", 192, model[:4])):
        x = inputs(torch.cat([batch[0] for batch in batches]))[:count].detach()
        torch.testing.assert_close(measured.inputs[name], x.T @ x / count, rtol=1e-4, atol=1e-5)


class Reader(nn.Module):
    """Words, a layer and a mean over those that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.out = nn.Embedding(9, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, words: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.words(words)).tanh() * attention_mask.unsqueeze(-1)
        read: Tensor = self.out(hidden.sum(1))
        return read


def test_padding_is_not_among_the_inputs() -> None:
    torch.manual_seed(0)
    model, texts = Reader(), [torch.randint(1, 9, (length,)) for length in (3, 8, 5)]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = (padded != 0).long()

    def inputs(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return model(batch[0], attention_mask=batch[1]).square().mean()  # type: ignore[no-any-return]

        return calibrate(model, batches, loss, ["layer.weight", "out.weight"]).inputs

    together = inputs([(padded, mask)])
    alone = inputs([(text.unsqueeze(0), torch.ones(1, len(text))) for text in texts])
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected)
    read = model.words(torch.cat(texts)).detach()
    torch.testing.assert_close(together["layer.weight"], read.T @ read / len(read))


class Attention(nn.Module):
    """Three matrices with the same inputs, of odd sizes, one whose inputs only equal theirs, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.copied = (nn.Linear(37, size) for size in (5, 5, 6, 3))
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.softmax(self.query(x) @ self.key(x).T, -1)
        found: Tensor = self.out(each @ self.value(x) + self.copied(x + 0.0).sum(-1, keepdim=True))
        return found


def test_matrices_that_multiply_the_same_tensor_share_a_sum_of_it() -> None:
    torch.manual_seed(0)
    model, batches = Attention(), list(torch.randn(3, 50, 37))
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    inputs = calibrate(model, batches, lambda model, batch: model(batch).square().mean(), names).inputs
    x = torch.cat(batches).to(torch.float64)
    expected = (x.T @ x / len(x)).to(torch.float32)
    assert set(inputs) == set(names)
    for name in names[:4]:
        torch.testing.assert_close(inputs[name], expected)
    assert inputs["query.weight"] is inputs["key.weight"] is inputs["value.weight"]
    assert inputs["copied.weight"] is not inputs["query.weight"]
    torch.testing.assert_close(inputs["out.weight"], inputs["out.weight"].T)


def entropy_of(model: nn.Module, steps: dict[str, float]) -> float:
    state, bits, count = model.state_dict(), 0.0, 0
    for name, step in steps.items():
        histogram = Histogram.of((state[name] / step).round().to(torch.int32).reshape(-1).numpy())
        bits, count = bits + histogram.entropy_bits(), count + histogram.count
    return bits / count


def test_statistics_of_a_calibration() -> None:
    model, batches = trained()
    measured = calibrate(model, batches, loss_of, ["0.weight", "2.weight", "4.weight"])
    x = torch.cat([batch[0] for batch in batches])
    torch.testing.assert_close(measured.inputs["0.weight"], x.T @ x / len(x))
    hidden = model[:2](x)
    torch.testing.assert_close(measured.inputs["2.weight"], hidden.T @ hidden / len(x), rtol=1e-4, atol=1e-5)
    assert measured.transposed == {"2.weight"}
    squares = 0.0
    for batch in batches:
        [gradient] = torch.autograd.grad(loss_of(model, batch), [model[4].weight])
        squares += float(gradient.square().mean()) / len(batches)
    assert measured.gradients.sensitivity["4.weight"] == pytest.approx(squares, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ConfigError, match="at least one batch"):
        calibrate(model, [], loss_of, ["0.weight"])


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_model_rounded_to_an_entropy(price: float, tmp_path: Path) -> None:
    model, batches = trained()
    nearest = copy.deepcopy(model)
    quantizer = round_to_entropy(model, 1.2, batches, loss_of, price=price)
    assert 0.99 * 1.2 <= entropy_of(model, dict(quantizer.step_of)) <= 1.2
    rdo.save_compressed(model, tmp_path / "model.rdo", quantizer=quantizer)
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value) for name, value in model.state_dict().items())
    ratios = {name: float(nearest.state_dict()[name].square().mean().sqrt()) for name in quantizer.step_of}
    low, high = 0.1, 8.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        steps = {name: middle * ratio for name, ratio in ratios.items()}
        low, high = (middle, high) if entropy_of(nearest, steps) > 1.2 else (low, middle)
    with torch.no_grad():
        for name, ratio in ratios.items():
            weight = nearest.get_parameter(name)
            weight.copy_((weight / (high * ratio)).round() * high * ratio)
    losses = [sum(float(loss_of(m, batch).detach()) for batch in batches) for m in (model, nearest)]
    assert losses[0] < 0.7 * losses[1], "rounded to nearest, at steps by scale and the same entropy"


def test_impossible_requests_are_refused() -> None:
    model, batches = trained()
    with pytest.raises(ConfigError, match="nothing to round"):
        round_to_entropy(model, 0.0, batches, loss_of)
    with pytest.raises(ConfigError, match="nothing to round"):
        round_to_entropy(model, 2.0, batches, loss_of, compressible=lambda *_: False)
    with pytest.raises(ConfigError, match="ask for less"):
        round_to_entropy(model, 20.0, batches, loss_of)


def test_model_rounded_to_the_size_of_a_file(tmp_path: Path) -> None:
    model, batches = trained()
    quantizer = round_to_size(model, 3.0, batches, loss_of)
    info = rdo.save_compressed(model, tmp_path / "model.rdo", quantizer=quantizer)
    assert 0.995 * 3.0 <= info.bits_per_parameter <= 3.0
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value) for name, value in model.state_dict().items())


def test_a_size_that_cannot_be_had_leaves_the_model_as_it_was() -> None:
    model, batches = trained()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"the least found was .*; ask for more"):
        round_to_size(model, 0.2, batches, loss_of)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("increase", [0.02, 0.5])
def test_the_coarsest_model_that_a_loss_allows(increase: float) -> None:
    model, batches = trained()
    calibration, held_out = batches[:5], batches[5:]
    original, before = copy.deepcopy(model), mean_loss(model, held_out, loss_of)
    quantizer = round_to_loss(model, increase, calibration, loss_of, held_out)
    after = mean_loss(model, held_out, loss_of)
    assert after <= (1.0 + increase) * before
    coarser = 0.4 * quantizer.bits  # a rounding moves the loss of so small a model by 5 % either way
    round_to_entropy(original, coarser, calibration, loss_of)
    assert mean_loss(original, held_out, loss_of) > (1.0 + increase) * before, "fewer bits cost more than is allowed"


def test_a_loss_that_cannot_be_had_leaves_the_model_as_it_was() -> None:
    model, batches = trained()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="allow a greater loss"):
        CompensatedRounding(model, batches, loss_of).coarsest(lambda _: False, Rounded.entropy_bits)
    with pytest.raises(ConfigError, match="held-out batches"):
        round_to_loss(model, 0.1, batches, loss_of, [])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Gates(nn.Module):
    """Values times gates that are shut or open for most inputs, whose mean is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(24, 64), nn.Linear(24, 64), nn.Linear(64, 8)
        with torch.no_grad():
            self.gate.weight.add_(torch.tensor([8.0, -8.0]).repeat(32).unsqueeze(1) / 24)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.gate(x).sigmoid() * self.value(x))
        return found


@pytest.mark.parametrize("channels", [False, True])
def test_gradients_of_the_rounded_model_tell_what_gates_are_worth(channels: bool) -> None:
    """Those of the model as it is do not: a gate that is shut has hardly any, and is rounded to half open."""
    torch.manual_seed(0)
    model = Gates()
    x = 1.0 + torch.randn(512, 24)
    y = model(x).detach()
    batches = list(zip(x.split(32), (y + 0.3 * y.std() * torch.randn_like(y)).split(32), strict=True))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    names = [name for name, weight in model.named_parameters() if weight.ndim > 1]
    measured = calibrate(copy.deepcopy(model), batches, loss, names)
    rows = measured.gradients.within.steps() if channels else {}
    weights = {name: model.get_parameter(name).detach().clone() for name in names}
    plan = RoundingPlan(weights, measured, measured.gradients.sensitivity, rows)
    first = plan.search(2.0, Rounded.entropy_bits)
    before = copy.deepcopy(model.state_dict())
    found = CompensatedRounding(model, batches, loss, channels=channels).search(2.0, Rounded.entropy_bits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    least, losses = mean_loss(model, batches, loss), []
    for rounded in (first, found):
        assert 0.99 * 2.0 <= rounded.entropy_bits() <= 2.0
        rounded.fill(model)
        losses.append(mean_loss(model, batches, loss) - least)
    assert 0.0 < losses[1] < 0.7 * losses[0]
