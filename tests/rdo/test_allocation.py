"""Steps for a size: against brute force, the size of files that are written, and what cannot be met."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import rdo
from rdo.allocation import nearest_below, steps_for_bits
from rdo.coders import make_coder
from rdo.coders.base import Histogram
from rdo.errors import ConfigError, NonFiniteWeightsError, UnknownNameError
from rdo.quantizers import quantizer_from_config
from rdo.rate_distortion import STEPS_PER_OCTAVE, Curve, Point, allocate, hull


def state(seed: int = 0) -> dict[str, Tensor]:
    """Matrices of several scales, sizes and laws, two of them tied; a vector that is stored as it is."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(211, 307, generator=generator) * 0.3
    return {
        "wide": wide,
        "narrow": torch.randn(97, 101, generator=generator) * 0.003,
        "tied": wide,
        "heavy": torch.randn(64, 129, generator=generator).pow(3).bfloat16() * 0.05,
        "bias": torch.randn(211, generator=generator),
        "zeros": torch.zeros(5, 7),
    }


def written(model: dict[str, Tensor], path: Path, **options: object) -> rdo.checkpoint.CheckpointInfo:
    return rdo.save_compressed(model, path / "m.rdo", **options)  # type: ignore[arg-type]


def test_no_choice_of_points_is_better() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        curves = [
            [Point(float(r), float(d), 1.0) for r, d in generator.integers(0, 30, (size, 2))]
            for size in generator.integers(1, 6, 4)
        ]
        budget = float(generator.integers(10, 90))
        rates = [(sum(p.rate for p in c), sum(p.distortion for p in c)) for c in itertools.product(*curves)]
        chosen = allocate(curves, budget)
        rate, distortion = sum(p.rate for p in chosen), sum(p.distortion for p in chosen)
        least = min(r for r, _ in rates)
        assert rate == least if least > budget else rate <= budget
        assert distortion == min(d for r, d in rates if r <= rate)


def test_a_hull_bends_one_way() -> None:
    points = [Point(0, 9, 1), Point(0, 8, 2), Point(1, 7, 3), Point(2, 2, 4), Point(3, 2, 5), Point(4, 1, 6)]
    assert hull(points) == [Point(0, 8, 2), Point(2, 2, 4), Point(4, 1, 6)]
    assert hull([Point(0, 4, 1), Point(1, 3, 2), Point(2, 2, 3)]) == [Point(0, 4, 1), Point(2, 2, 3)]


@pytest.mark.parametrize("relative", [False, True])
def test_points_are_those_of_rounding_in_float64(relative: bool) -> None:
    weight, coder = state()["heavy"], make_coder("rans")
    curve = Curve(weight, coder, relative=relative, importance=3.0, dead_zone=0.2)
    values = weight.double().numpy()
    counted = 3.0 / (values**2).mean() if relative else 3.0
    point = curve.at(-3 * STEPS_PER_OCTAVE)
    step = float(np.float32(point.step))
    assert point.step == pytest.approx(2.0**-3 / math.sqrt(counted))
    symbols = np.where(np.abs(values / step) < 0.7, 0, np.rint(values / step)).astype(np.int32)
    assert point.rate == coder.size_bytes(Histogram.of(symbols.reshape(-1)))
    assert point.distortion == pytest.approx(counted * ((values - symbols * step) ** 2).sum(), rel=1e-5)
    assert curve.zero().distortion == pytest.approx(counted * (values**2).sum(), rel=1e-6)


def test_a_sample_stands_for_a_large_tensor() -> None:
    weight = state()["wide"].repeat(3, 1)[:499]  # 153,193 weights
    point = Curve(weight, make_coder("rans"), relative=False).at(-80)
    quantized = rdo.UniformQuantizer(step=point.step).quantize(weight)
    stream = make_coder("rans").encode(quantized.symbols.numpy().reshape(-1))
    assert point.rate == pytest.approx(stream.nbytes, rel=0.01)
    assert point.distortion == pytest.approx(float((quantized.dequantize() - weight).double().square().sum()), rel=0.01)


@pytest.mark.parametrize("bits", [0.7, 2.0, 3.0, 4.5, 8.0])
@pytest.mark.parametrize("distortion", ["absolute", "relative"])
def test_the_file_has_the_size(bits: float, distortion: str, tmp_path: Path) -> None:
    model = state()
    info = written(model, tmp_path, quantizer=steps_for_bits(model, bits, distortion=distortion))
    assert info.file_bytes == (tmp_path / "m.rdo").stat().st_size
    assert info.parameters == 211 * 307 + 97 * 101 + 64 * 129 + 211 + 35  # tied weights once
    assert 0.999 * bits <= 8 * info.file_bytes / info.parameters <= bits


@pytest.mark.parametrize(
    "options",
    [
        {"coder": "huffman"},
        {"coder": "exp_golomb", "raw_dtype": torch.bfloat16},
        {"coder": make_coder("fixed_length"), "compressible": lambda name, tensor: name in ("wide", "bias")},
    ],
)
def test_other_options_of_files(options: dict[str, object], tmp_path: Path) -> None:
    model = state()
    bits = 9.5
    quantizer = steps_for_bits(model, bits, dead_zone=0.1, **options)  # type: ignore[arg-type]
    assert quantizer.dead_zone == 0.1
    info = written(model, tmp_path, quantizer=quantizer, **options)
    # A fixed length is a whole number of bits for each tensor.
    least = 0.85 if "compressible" in options else 0.99
    assert least * bits <= info.bits_per_parameter <= bits


def test_more_bits_lose_less(tmp_path: Path) -> None:
    model = state()
    sizes, errors = [], []
    for bits in (0.6, 0.9, 1.3, 2.0, 3.1, 5.0, 7.0):
        sizes.append(written(model, tmp_path, quantizer=steps_for_bits(model, bits, distortion="absolute")).file_bytes)
        found = rdo.load_compressed(tmp_path / "m.rdo")
        errors.append(sum(float((found[name] - model[name]).double().square().sum()) for name in model))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert len(set(sizes)) == len(set(errors)) == 7


def test_absolute_error_is_less_than_with_one_step(tmp_path: Path) -> None:
    model = {name: state()[name] for name in ("wide", "narrow", "heavy")}
    coded = written(model, tmp_path, quantizer=rdo.UniformQuantizer(step=0.5))

    def error() -> float:
        found = rdo.load_compressed(tmp_path / "m.rdo")
        return sum(float((found[name] - model[name]).double().square().sum()) for name in model)

    one_step = error()
    info = written(
        model, tmp_path, quantizer=steps_for_bits(model, coded.bits_per_parameter * 1.001, distortion="absolute")
    )
    assert info.file_bytes <= 1.001 * coded.file_bytes
    assert error() < 1.001 * one_step


def test_relative_steps_follow_the_scale_and_importance_moves_them() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(160, 160, generator=generator)
    model = {"a": weight, "b": 2.0**-6 * weight}

    def octaves(**options: object) -> float:
        steps = steps_for_bits(model, 5.0, **options).step_of  # type: ignore[arg-type]
        return math.log2(steps["b"] / steps["a"])

    grid = 0.15  # a segment of a hull spans several steps of the grid
    assert octaves() == pytest.approx(-6.0, abs=grid)
    assert octaves(distortion="absolute", importance={"b": 2.0**12}) == pytest.approx(-6.0, abs=grid)
    assert octaves(importance={"b": 16.0}) == pytest.approx(-8.0, abs=grid)


def test_the_same_model_gives_the_same_steps() -> None:
    first, second = (steps_for_bits(state(), 2.5) for _ in range(2))
    assert first == second
    assert first.config() == {"name": "allocated", "bits": 2.5, "distortion": "relative", "dead_zone": 0.0}
    assert set(first.step_of) == {"wide", "narrow", "heavy", "zeros"}


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (2, 0), (13, 17, 2)])
def test_small_tensors(size: tuple[int, ...], tmp_path: Path) -> None:
    model = {"w": torch.randn(size, generator=torch.Generator().manual_seed(1)), "big": state()["narrow"]}
    info = written(model, tmp_path, quantizer=steps_for_bits(model, 3.0))
    assert 0.995 * 3.0 <= info.bits_per_parameter <= 3.0


def test_equal_tensors_and_a_module(tmp_path: Path) -> None:
    layer = torch.nn.Linear(128, 128, bias=False)
    model = torch.nn.Sequential(layer, torch.nn.Linear(128, 128, bias=False), layer)
    model[1].load_state_dict(layer.state_dict())
    quantizer = steps_for_bits(model, 2.0)
    info = rdo.save_compressed(model, tmp_path / "m.rdo", quantizer=quantizer)
    assert info.parameters == 2 * 128 * 128
    assert 0.998 * 2.0 <= info.bits_per_parameter <= 2.0


def test_progress_reaches_the_end() -> None:
    heard: list[tuple[int, int, str]] = []
    steps_for_bits(state(), 2.0, progress=lambda *told: heard.append(told))
    assert {done for done, total, what in heard if what == "measuring tensors" and total == 8} == set(range(1, 9))
    assert heard[0][0] == 0
    assert heard[-1][:2] == (8, 8)


@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        (0.0, {}, "positive number of bits"),
        (math.nan, {}, "positive number of bits"),
        (0.05, {}, r"0.05 bits per parameter are .* bytes, but no steps give less than .* ask for more"),
        (29.0, {}, "finest steps .* ask for at most that"),
        (32.0, {}, "nothing to choose"),
        (2.0, {"distortion": "cubic"}, "'absolute' or 'relative'"),
        (2.0, {"importance": {"absent": 1.0}}, "'absent'"),
        (2.0, {"importance": {"wide": 0.0}}, "positive number"),
        (2.0, {"dead_zone": -1.0}, "dead_zone"),
        (31.0, {"compressible": lambda name, tensor: False}, r"no steps give less|nothing to choose"),
    ],
)
def test_what_cannot_be_met_is_said(bits: float, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steps_for_bits(state(), bits, **options)  # type: ignore[arg-type]


def test_errors_of_writing_come_through() -> None:
    with pytest.raises(NonFiniteWeightsError, match="w: 1 of 4"):
        steps_for_bits({"w": torch.tensor([[1.0, math.inf], [0.0, 1.0]])}, 2.0)
    with pytest.raises(UnknownNameError, match="huffman"):
        steps_for_bits(state(), 2.0, coder="hufman")


def test_allocated_steps_are_for_their_model(tmp_path: Path) -> None:
    quantizer = steps_for_bits(state(), 2.0)
    with pytest.raises(ConfigError, match="other: no step was allocated"):
        rdo.save_compressed({"other": torch.ones(2, 2)}, tmp_path / "m.rdo", quantizer=quantizer)
    with pytest.raises(ConfigError, match="unknown quantizer"):
        quantizer_from_config(quantizer.config())


@pytest.mark.parametrize("budget", [3, 10, 777, 1000, 99_000])
@pytest.mark.parametrize("slope", [0.0, 900.0, 1e6])
def test_nearest_below_meets_a_staircase(budget: float, slope: float) -> None:
    tried = []

    def size_at(octaves: float) -> int:
        tried.append(octaves)
        return int(1000 * 2.0 ** (-octaves)) // 3 * 3

    octaves, size = nearest_below(size_at, budget, -30.0, 20.0, slope)
    assert size == size_at(octaves)
    best = budget // 3 * 3
    assert min(best, 0.9995 * budget) <= size <= budget
    assert len(tried) <= 26


@pytest.mark.parametrize(("edge", "flat"), [(3.0, 100_100), (-3.0, 99_000)])
def test_nearest_below_leaves_a_plateau(edge: float, flat: int) -> None:
    """As a file has whose steps are all the least that they may be: it ends 3 octaves away, and a guess is 1e-3."""

    def size_at(octaves: float) -> int:
        beyond = max(octaves - edge, 0.0) if edge > 0 else min(octaves - edge, 0.0)
        return round(flat - 10_000 * beyond)

    octaves, size = nearest_below(size_at, 100_000.0, -8.0, 8.0, 1e6)
    assert 0.9995 * 100_000 <= size <= 100_000
    assert octaves == pytest.approx(edge + (flat - 100_000) / 10_000, abs=0.01)


def test_nearest_below_ends_at_its_limits() -> None:
    assert nearest_below(lambda octaves: 50, 10.0, -8.0, 8.0, 1.0) == (8.0, 50)
    assert nearest_below(lambda octaves: 5, 10.0, -8.0, 8.0, 1.0) == (-8.0, 5)
