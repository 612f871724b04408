"""Training to a size: what the model holds, what the file weighs, and resuming to the same bits."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdo
from rdo.attach import TargetAttachment
from rdo.coding_grid import CodingGrid
from rdo.errors import ConfigError
from rdo.measurement import MEASURED_STEPS

SIZE = 48


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(SIZE, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 5))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(64, SIZE, generator=generator)
    teacher = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(99))
    return inputs, (inputs @ teacher).argmax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """The mean loss of the last five steps."""
    losses = []
    for step in steps:
        inputs, labels = batch(step)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-5:]) / 5


def sized(bits: float = 1.5, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, TargetAttachment]:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    options = {"start": 0, "hardening": 0, **options}
    handle = rdo.attach(optimizer, model, bits_per_parameter=bits, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    return model, optimizer, handle


@pytest.mark.parametrize("bits", [1.2, 2.5, 5.0])
def test_file_has_the_size_and_the_model_is_what_it_decodes_to(bits: float, tmp_path: Path) -> None:
    model, optimizer, handle = sized(bits, coder=["rans", "context"])
    train(model, optimizer, range(80))
    coded = rdo.save_compressed(model, tmp_path / "before.rdo", quantizer=handle.quantizer(), coder=["rans", "context"])
    assert coded.bits_per_parameter == pytest.approx(bits, rel=0.05), "the size is followed during the training"
    info = handle.save(tmp_path / "model.rdo")
    assert 0.99 * bits <= info.bits_per_parameter <= bits
    decoded = rdo.load_compressed(tmp_path / "model.rdo")
    assert all(torch.equal(decoded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("seed", range(20))
def test_no_file_of_a_tiny_model_is_too_large(seed: int, tmp_path: Path) -> None:
    """Where a byte is a lot, what is written must have the very steps of the trial that had the size."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(SIZE, 40), nn.Tanh(), nn.Linear(40, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = rdo.attach(optimizer, model, bits_per_parameter=5.0, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    train(model, optimizer, range(25))
    info = handle.save(tmp_path / "model.rdo")
    assert 0.99 * 5.0 <= info.bits_per_parameter <= 5.0
    coders = ["rans", "context"]
    again = rdo.save_compressed(model, tmp_path / "again.rdo", quantizer=handle.quantizer(), coder=coders)
    assert again.file_bytes == info.file_bytes


def test_size_in_megabytes_counts_the_whole_file(tmp_path: Path) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    handle = rdo.attach(optimizer, model, size_mb=0.0075, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    train(model, optimizer, range(60))
    handle.save(tmp_path / "model.rdo")
    assert 7425 <= (tmp_path / "model.rdo").stat().st_size <= 7500


def test_muon_trains_its_matrices_to_a_size(tmp_path: Path) -> None:
    """It makes steps of a matrix orthogonal, the rate's share of them too: there is no second moment to divide by."""

    def muon(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02, weight_decay=0.0)

    model, priced, plain = model_of(), model_of(), model_of()
    optimizer = muon(model)
    handle = rdo.attach(optimizer, model, bits_per_parameter=2.5, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    begin = train(model_of(), muon(model_of()), range(5))
    assert train(model, optimizer, range(80)) < 0.6 * begin
    assert 0.99 * 2.5 <= handle.save(tmp_path / "model.rdo").bits_per_parameter <= 2.5

    optimizer = muon(priced)
    rates = rdo.attach(optimizer, priced, lam=0.3, verbose=False).constraint
    train(priced, optimizer, range(80))
    train(plain, muon(plain), range(80))
    quantizer = rdo.UniformQuantizer(2.0**-6)
    matrices = [(name, p) for name, p in plain.named_parameters() if p.ndim == 2]
    unpriced = rdo.RateConstraint(matrices, lam=0.0).coded_rate(quantizer)
    assert rates.coded_rate(quantizer) < unpriced - 0.5


def test_optimizer_moves_unrounded_weights_by_the_gradient_at_rounded_ones() -> None:
    model, optimizer, handle = sized(pressure=0.0, channels=False)
    train(model, optimizer, range(MEASURED_STEPS))
    grid = handle.target.grid
    assert grid is not None
    steps = dict(zip(grid.names, grid.steps.tolist(), strict=True))
    masters = dict(zip(grid.names, (m.clone() for m in grid.masters), strict=True))
    for name, parameter in model.named_parameters():
        if name in steps:
            torch.testing.assert_close(parameter.detach(), (masters[name] / steps[name]).round() * steps[name])
    twin = copy.deepcopy(model)
    inputs, labels = batch(1000)
    nn.functional.cross_entropy(twin(inputs), labels).backward()
    expected = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    moved: dict[str, Tensor] = {}
    plain = torch.optim.AdamW([masters[n].requires_grad_() for n in masters], lr=3e-3)
    plain.load_state_dict(
        {
            "state": {i: optimizer.state[dict(model.named_parameters())[n]] for i, n in enumerate(masters)},
            "param_groups": [{**plain.state_dict()["param_groups"][0]}],
        }
    )
    plain_state = copy.deepcopy(plain.state_dict())
    plain.load_state_dict(plain_state)  # its own copy: the model's optimizer goes on with the original
    for name, master in masters.items():
        master.grad = expected[name]
    train(model, optimizer, range(1000, 1001))
    plain.step()
    moved = dict(zip(grid.names, grid.masters, strict=True))
    for name, master in masters.items():
        torch.testing.assert_close(moved[name], master.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stopped", "start"),
    [(30, 40), (45, 40), (5, "settled"), (15, "settled")],
    ids=["measuring", "rounded", "first look", "second look"],
)
def test_resuming_gives_the_same_bits(stopped: int, start: int | str) -> None:
    model, optimizer, handle = sized(start=start)
    train(model, optimizer, range(stopped))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    train(model, optimizer, range(stopped, 90))
    other, resumed, second = sized(start=start)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(other, resumed, range(stopped, 90))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert handle.state_dict()["target"]["entropy"] == second.state_dict()["target"]["entropy"]


@pytest.mark.parametrize("allocation", ["sensitivity", "balanced", "scale"])
def test_sensitive_tensors_get_finer_steps(allocation: str) -> None:
    """At equal loss the last layer, 25 times smaller than the middle one, has the larger gradients."""
    model, optimizer, handle = sized(allocation=allocation, compensated=False)
    roots = torch.zeros(3, dtype=torch.float64)
    for step in range(MEASURED_STEPS):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        roots += torch.stack([p.grad.double().square().mean() for p in model.parameters() if p.ndim > 1])  # type: ignore[union-attr]
        optimizer.step()
    grid = handle.target.grid
    assert grid is not None
    lengths = torch.stack([master.double().square().mean().sqrt() for master in grid.masters])
    by = {"sensitivity": 1.0 / roots.sqrt(), "balanced": (lengths / roots.sqrt()).sqrt(), "scale": lengths}
    products = grid.steps.double() / by[allocation]
    torch.testing.assert_close(products, products.mean().expand(3), rtol=1e-5, atol=0)
    assert (float(grid.steps[2]) < float(grid.steps[1])) == (allocation != "scale")


def test_all_parameters_of_a_model_can_have_a_rate_term_scalars_and_vectors_too(tmp_path: Path) -> None:
    model = model_of()
    model.register_parameter("factor", nn.Parameter(torch.tensor(1.5)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    options = {"start": 0, "hardening": 0}
    handle = rdo.attach(
        optimizer, model, bits_per_parameter=2.0, parameters="all", verbose=False, target_options=options
    )
    assert isinstance(handle, TargetAttachment)
    for step in range(40):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs) * model.get_parameter("factor"), labels).backward()
        optimizer.step()
    assert handle.save(tmp_path / "model.rdo").bits_per_parameter == pytest.approx(2.0, rel=0.01)
    assert torch.equal(rdo.load_compressed(tmp_path / "model.rdo")["factor"], model.get_parameter("factor").data)


def test_pressure_makes_steps_finer_at_the_same_size() -> None:
    steps = []
    for pressure in (0.0, 0.3):
        model, optimizer, handle = sized(pressure=pressure)
        train(model, optimizer, range(100))
        assert handle.rate().entropy_bits_per_parameter == pytest.approx(handle.target.goal_bits, rel=0.03)
        assert handle.target.grid is not None
        steps.append(float(handle.target.grid.steps.log().mean().exp()))
    assert steps[1] < 0.9 * steps[0]


@pytest.mark.parametrize("bits", [1.5, 2.5])
def test_a_bit_more_is_pressed_for_with_a_quarter(bits: float) -> None:
    prices = []
    for size in (bits, bits + 1.0):
        model, optimizer, handle = sized(size, start=50)
        train(model, optimizer, range(1))  # nothing is rounded yet: both have the same gradients
        prices.append(handle.rate().lam)
    assert prices[1] == pytest.approx(prices[0] / 4)
    assert prices[0] > 0.0


@pytest.mark.parametrize("spared", [False, True])
def test_words_that_never_occur_can_be_spared_the_rate_term(spared: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    factors = {"0.*": 0.0} if spared else {}
    rdo.attach(
        optimizer, model, bits_per_parameter=16.0, verbose=False, lam_factors=factors,
        target_options={"start": 100, "pressure": 1e12},
    )  # fmt: skip
    before = model[0].weight[5:].detach().abs().mean()
    for _ in range(40):
        words = torch.randint(5, (32, 2))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words), words[:, 0].clamp(max=2)).backward()
        optimizer.step()
    after = model[0].weight[5:].detach().abs().mean()
    if spared:
        assert float(after) == float(before)
    else:
        assert float(after) < 0.8 * float(before)


def test_rounding_begins_when_the_learning_rate_has_decayed(tmp_path: Path) -> None:
    model, optimizer, handle = sized(start="decayed")
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 5, (80 - step) / 75)
        train(model, optimizer, range(step, step + 1))
        # Inputs are recorded from 0.6 of the peak on.
        assert (handle.target.measurement.recorder is not None) == (35 <= step < 69)
        if step == 40:
            with pytest.raises(ConfigError, match="or where `start` says"):
                handle.save(tmp_path / "model.rdo")
    # The rate falls to 0.4 of its peak with step 50.
    assert handle.target.measurement.start == 50 + MEASURED_STEPS
    assert handle.save(tmp_path / "model.rdo").bits_per_parameter == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize("falling", [True, False])
def test_it_is_said_if_the_learning_rate_gives_no_sign_to_round(falling: bool) -> None:
    model, optimizer, _ = sized(start="decayed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(450):
            if falling:
                optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / 900)
            train(model, optimizer, range(step, step + 1))
    said = [str(warning.message) for warning in caught if "the learning rate has been" in str(warning.message)]
    assert len(said) == (0 if falling else 1)
    assert all("0.003 for 200 steps" in each and "to 0.4 of its peak" in each for each in said)


class Two(nn.Module):
    """A model whose first layer matters ten times less, or more, from some step on."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(SIZE, 64), nn.Linear(64, 5)
        self.turn, self.calls = turn, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        first = self.first(x)
        if self.calls > self.turn:
            first = 0.1 * first + 0.9 * first.detach()
        result: Tensor = self.second(first.tanh())
        return result


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize(("turn", "start"), [(1000, 20), (10, 60 + MEASURED_STEPS)])
def test_rounding_begins_early_if_sensitivities_have_settled(turn: int, start: int, compensated: bool) -> None:
    """A model whose tensors keep their relations is rounded after 20 steps, another when the learning rate fell."""
    model = Two(turn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"compensated": compensated}
    handle = rdo.attach(optimizer, model, bits_per_parameter=6.0, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    for step in range(start):
        optimizer.param_groups[0]["lr"] = 0.0 if step == 0 else 0.01 if step < 60 else 0.004
        assert handle.target.grid is None
        train(model, optimizer, range(step, step + 1))
    assert handle.target.grid is not None
    assert handle.target.measurement.start == start
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_odd_batch_is_no_change_of_sensitivities() -> None:
    """It makes the halves differ, but even and odd steps by as much."""
    model = Two(1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = rdo.attach(optimizer, model, bits_per_parameter=6.0, verbose=False)
    assert isinstance(handle, TargetAttachment)
    for step in range(MEASURED_STEPS):
        optimizer.param_groups[0]["lr"] = 0.0 if step == 0 else 0.01
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        if step == 3:
            assert model.first.weight.grad is not None
            model.first.weight.grad *= 20.0
        optimizer.step()
    assert handle.target.measurement.start == MEASURED_STEPS


def test_a_model_in_its_warm_up_is_not_taken_for_settled_before_it_moves() -> None:
    """As long as the learning rate rises and all gradients point the same way, another look is taken."""
    model = Two(1_000_000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    handle = rdo.attach(optimizer, model, bits_per_parameter=6.0, verbose=False)
    assert isinstance(handle, TargetAttachment)
    for step in range(125):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(step / 90, 1.0)
        train(model, optimizer, range(step, step + 1))
    # The rate rises in the steps 80 to 99; it did no longer from 100 to 119.
    assert handle.target.measurement.start == 120


def test_direction_has_the_length_of_the_sum_of_gradients() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = rdo.attach(optimizer, model, bits_per_parameter=6.0, verbose=False, target_options={"pressure": 0.0})
    assert isinstance(handle, TargetAttachment)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    total = [torch.zeros_like(matrix) for matrix in matrices]
    for step in range(15):
        train(model, optimizer, range(step, step + 1))
        for matrix, seen in zip(matrices, total, strict=True):
            assert matrix.grad is not None
            seen += matrix.grad
    squares = sum(float(seen.square().sum()) for seen in total)
    assert float(handle.target.measurement._direction.square().sum()) == pytest.approx(squares, rel=0.3)


def test_compensation_leaves_less_error_than_rounding_alone() -> None:
    losses = []
    for compensated in (False, True):
        model, optimizer, _ = sized(bits=1.3, start=60, compensated=compensated, pressure=0.0)
        train(model, optimizer, range(60))
        inputs, labels = batch(5000)
        losses.append(float(nn.functional.cross_entropy(model(inputs), labels).detach()))
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("bits", [1.2, 2.0])
@pytest.mark.parametrize("start", [30, "settled"])
def test_a_compensated_rounding_has_the_size(bits: float, start: int | str) -> None:
    """What is added to weights to make good for others takes bits, which the first steps have to leave room for."""
    torch.manual_seed(0)
    mixed = torch.randn(SIZE, 6) @ torch.randn(6, SIZE) + 0.3 * torch.eye(SIZE)
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options = {"start": start, "pressure": 0.0}
    handle = rdo.attach(optimizer, model, bits_per_parameter=bits, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    step = 0
    while handle.target.grid is None:
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs @ mixed), labels).backward()
        optimizer.step()
        step += 1
    assert step == (start if isinstance(start, int) else 20)
    file = rdo.save_compressed(model, None, quantizer=handle.quantizer(), coder=["rans", "context"])
    assert file.bits_per_parameter == pytest.approx(bits, rel=0.015)


@pytest.mark.parametrize(
    ("rate", "steps", "compensated"),
    [(1e-3, 1000, False), (1e-3, 40, True), (3e-5, 1000, True), (3e-5, None, True), (1e-3, None, False)],
)
def test_a_settled_model_is_compensated_if_its_weights_have_no_room(
    rate: float, steps: int | None, compensated: bool
) -> None:
    """A learning rate that is small, or falls to zero soon. None: it is constant, and no one knows how long."""
    model = Two(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(60):  # until gradients do not agree any longer
        train(model, optimizer, range(step, step + 1))
    handle = rdo.attach(optimizer, model, bits_per_parameter=6.0, verbose=False)
    assert isinstance(handle, TargetAttachment)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = rate * (1.0 - step / steps if steps else 1.0)
        train(model, optimizer, range(step, step + 1))
    assert handle.target.grid is not None
    assert (handle.target._hardening.hardness == 1.0) == compensated
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_skipped_step_changes_nothing() -> None:
    model, optimizer, handle = sized()
    train(model, optimizer, range(40))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # type: ignore[attr-defined]
    before, step = [p.detach().clone() for p in model.parameters()], handle.target.step
    for hook in (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()):
        hook(optimizer, (), {})
    assert handle.target.step == step
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_what_cannot_be_had_is_refused() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in (
        {},
        {"lam": 0.1, "bits_per_parameter": 2.0},
        {"bits_per_parameter": 2.0, "size_mb": 1.0},
        {"bits_per_parameter": -1.0},
        {"lam": 0.1, "target_options": {"pressure": 0.1}},
        {"size_mb": 1.0, "in_backward": True},
        {"size_mb": 1.0, "target_options": {"allocation": "even"}},
        {"size_mb": 1.0, "target_options": {"start": "late"}},
        {"size_mb": 1.0, "target_options": {"start": -1}},
    ):
        with pytest.raises(ConfigError):
            rdo.attach(optimizer, model, verbose=False, **options)
    handle = rdo.attach(optimizer, model, bits_per_parameter=0.2, verbose=False, target_options={"start": 0})
    assert isinstance(handle, TargetAttachment)
    with pytest.raises(ConfigError, match="that begins after 20 optimizer steps"):
        handle.quantizer()
    with pytest.raises(ConfigError, match="no room"):
        train(model, optimizer, range(MEASURED_STEPS))


def test_grid_of_zeros_and_of_unreachable_entropy() -> None:
    grid = CodingGrid(["a"], [torch.randn(1000, generator=torch.Generator().manual_seed(0))], [1.0])
    grid.fit(3.0)
    assert float(grid.entropy_bits()) == pytest.approx(3.0, abs=0.02)
    with pytest.raises(ConfigError, match="ask for less"):
        grid.fit(15.0)
    with pytest.raises(ConfigError, match="ask for less"):
        CodingGrid(["a"], [torch.zeros(10)], [1.0]).fit(1.0)


def test_grid_turns_back_at_once_from_the_least_steps() -> None:
    """A size that cannot be filled drives the scale down for as long as the training lasts."""
    weights = [torch.randn(500, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    grid = CodingGrid(["a", "b"], weights, [1.0, 0.5])
    for _ in range(50):
        grid.move(-0.2)
    least = grid.steps
    assert least.tolist() == pytest.approx([float(weight.abs().max()) / 512 for weight in weights])
    grid.move(1.0)
    assert float((grid.steps / least).amax()) == 2.0


def test_grid_of_tensors_that_differ_a_millionfold_in_sensitivity() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2000, generator=generator), torch.randn(1000, generator=generator)]
    for bits in (4.0, 7.0):
        grid = CodingGrid(["a", "b"], weights, [1.0, 2.0**-20])
        grid.fit(bits)
        assert float(grid.entropy_bits()) == pytest.approx(bits, abs=0.02)
        finest = float(grid.steps[1])
        assert finest == pytest.approx(float(weights[1].abs().max()) / 512), "as fine as a step gets"
        again = CodingGrid(["a", "b"], [w.round() for w in weights], [1.0, 2.0**-20], grid.state_dict()["finest"])
        again.move(float(grid.state_dict()["octaves"]))
        assert torch.equal(again.steps, grid.steps)


@pytest.mark.parametrize("sizes", [[(30, 20), (7, 11)], [(300, 200), (100, 77)]])
def test_a_scale_is_found_whatever_it_was_before(sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [0.05 * torch.randn(size, generator=generator) for size in sizes]
    grid = CodingGrid([str(each) for each in range(len(sizes))], weights, [1.0, 0.3])
    for octaves in (-20.0, 0.0, 20.0):
        for bits in (0.05, 0.7, 2.0, 6.0):
            grid.move(octaves)
            grid.fit(bits)
            found = float(grid.entropy_bits())
            assert bits - 2e-2 < found <= bits
            grid.move(-0.02)
            assert float(grid.entropy_bits()) > found, "a finer one has more bits"
    with pytest.raises(ConfigError, match="no quantisation steps give the weights an entropy of 20 bits; ask for less"):
        grid.fit(20.0)
