"""Quantizers: exact symbols, steps of every granularity, and the errors of weights that cannot be quantised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdo.errors import ConfigError, NonFiniteWeightsError, SymbolOverflowError
from rdo.quantizers import (
    MAX_SYMBOL,
    QuantizedTensor,
    Quantizer,
    RelativeQuantizer,
    UniformQuantizer,
    quantizer_from_config,
    row_length,
)

QUANTIZERS = [
    UniformQuantizer(step=2.0**-5),
    UniformQuantizer(step=0.013, dead_zone=0.2),
    RelativeQuantizer(ratio=0.3),
    RelativeQuantizer(ratio=0.3, granularity="row", dead_zone=0.1),
]


def normal(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)


@pytest.mark.parametrize("n", [0, 4, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_power_of_two_steps_are_the_papers_rounding(n: int, dtype: torch.dtype) -> None:
    weight = normal(7, 31, dtype=dtype)
    quantized = UniformQuantizer(step=2.0**-n).quantize(weight)
    expected = np.round(weight.double().numpy() * 2**n)
    assert quantized.symbols.dtype == torch.int32
    assert quantized.steps.dtype == torch.float32
    assert quantized.symbols.numpy().tolist() == expected.tolist()
    assert (quantized.dequantize().double().numpy() == expected / 2**n).all()
    assert quantized.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_ties_round_to_even() -> None:
    weight = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert UniformQuantizer(step=1.0).quantize(weight).symbols.tolist() == [0, 2, 2, 0, -2, -2]


def test_dead_zone_widens_only_the_zero_cell() -> None:
    weight = torch.linspace(-3, 3, 601)
    plain = UniformQuantizer(step=1.0).quantize(weight).symbols
    wide = UniformQuantizer(step=1.0, dead_zone=0.25).quantize(weight).symbols
    inside = weight.abs() < 0.75
    assert bool((wide[inside] == 0).all())
    assert torch.equal(wide[~inside], plain[~inside])
    assert int((plain != wide).sum()) > 20


@pytest.mark.parametrize("quantizer", QUANTIZERS[:3], ids=str)
def test_error_is_at_most_half_a_step_outside_the_dead_zone(quantizer: Quantizer) -> None:
    weight = normal(50, 70)
    quantized = quantizer.quantize(weight)
    error = (quantized.dequantize() - weight).abs()
    assert float(error.max()) <= float(quantized.steps) * (0.5 + quantizer.dead_zone) * (1 + 1e-5)


@pytest.mark.parametrize("step", [2.0**-8, 0.013, 1e-4, 7.0])
@pytest.mark.parametrize("dead_zone", [0.0, 0.4])
def test_quantising_the_dequantised_changes_nothing(step: float, dead_zone: float) -> None:
    quantizer = UniformQuantizer(step=step, dead_zone=dead_zone)
    symbols = torch.cat(
        [torch.arange(-3000, 3000), torch.randint(-(2**20), 2**20, (5000,), generator=torch.Generator().manual_seed(0))]
    )
    quantized = QuantizedTensor(symbols.int(), torch.tensor(step))
    assert torch.equal(quantizer.quantize(quantized.dequantize()).symbols, quantized.symbols)


def test_relative_step_is_a_share_of_the_root_mean_square() -> None:
    weight = normal(13, 77)
    steps = RelativeQuantizer(ratio=0.25).quantize(weight).steps
    assert steps.ndim == 0
    assert float(steps) == pytest.approx(0.25 * math.sqrt(float((weight.double() ** 2).mean())), rel=1e-6)
    scaled = RelativeQuantizer(ratio=0.25).quantize(weight * 1024)
    assert torch.equal(scaled.symbols, RelativeQuantizer(ratio=0.25).quantize(weight).symbols)


@pytest.mark.parametrize(
    ("size", "length"),
    [
        ((30, 128), 128),  # a matrix: its rows
        ((4, 10, 96), 96),  # packed experts: the rows of each
        ((16, 8, 3, 3), 72),  # a convolution: one output channel
        ((16, 64, 3, 3), 576),
        ((64, 1, 1, 1), 64),
        ((5, 3), 15),  # too small for rows
        ((63,), 63),
        ((1,), 1),
        ((), 1),
        ((0,), 1),
        ((7, 0), 1),
        ((0, 128), 128),
    ],
)
def test_rows_of_every_size(size: tuple[int, ...], length: int) -> None:
    assert row_length(size) == length
    weight = normal(*size)
    quantized = RelativeQuantizer(ratio=0.5, granularity="row").quantize(weight)
    assert quantized.steps.shape == (weight.numel() // length,)
    assert quantized.symbols.shape == quantized.dequantize().shape == weight.shape
    for row, step, back in zip(
        weight.reshape(-1, length), quantized.steps, quantized.dequantize().reshape(-1, length), strict=True
    ):
        assert float(step) == pytest.approx(0.5 * float(row.double().square().mean().sqrt()), rel=1e-6)
        assert float((row - back).abs().max()) <= 0.5 * float(step) * (1 + 1e-5)


def test_rows_do_not_influence_each_other() -> None:
    weight = normal(5, 100)
    other = weight.clone()
    other[3] *= 1000
    rows, others = (RelativeQuantizer(granularity="row").quantize(w) for w in (weight, other))
    assert torch.equal(rows.symbols[[0, 1, 2, 4]], others.symbols[[0, 1, 2, 4]])
    assert torch.equal(rows.steps[[0, 1, 2, 4]], others.steps[[0, 1, 2, 4]])


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_zero_rows_and_tensors_get_a_step_of_one(granularity: str) -> None:
    weight = normal(3, 100)
    weight[1] = 0.0
    quantized = RelativeQuantizer(granularity=granularity).quantize(weight)
    assert not quantized.symbols[1].any()
    if granularity == "row":
        assert float(quantized.steps[1]) == 1.0
    zeros = RelativeQuantizer(granularity=granularity).quantize(torch.zeros(2, 64))
    assert bool((zeros.steps == 1.0).all())
    assert not zeros.symbols.any()


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("size", [(), (0,), (3, 0), (0, 64), (1,), (2, 3)])
def test_small_and_empty_tensors(quantizer: Quantizer, size: tuple[int, ...]) -> None:
    weight = torch.full(size, 0.05)
    quantized = quantizer.quantize(weight)
    assert quantized.symbols.shape == weight.shape
    assert quantized.dequantize().shape == weight.shape
    if weight.numel():
        assert float((quantized.dequantize() - weight).abs().max()) <= 0.6 * float(quantized.steps.max())


def test_any_layout_and_no_change_of_the_weights() -> None:
    weight = normal(40, 6, 5)
    for view in (weight.permute(2, 0, 1), weight[::2, 1:], weight.transpose(0, 1)):
        before = view.clone()
        for quantizer in QUANTIZERS:
            assert torch.equal(quantizer.quantize(view).symbols, quantizer.quantize(view.contiguous()).symbols)
        assert torch.equal(view, before)
    parameter = torch.nn.Parameter(normal(3, 3))
    assert not QUANTIZERS[0].quantize(parameter).dequantize().requires_grad


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=rf"embed\.index: cannot quantise {dtype}"):
        UniformQuantizer().quantize(torch.ones(3).to(dtype), "embed.index")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_nan_and_infinity_are_counted_and_refused(quantizer: Quantizer, value: float) -> None:
    weight = normal(4, 4)
    weight[1, 2] = weight[3, 3] = value
    with pytest.raises(NonFiniteWeightsError, match=r"layer\.0: 2 of 16 weights are NaN or infinite"):
        quantizer.quantize(weight, "layer.0")


def test_overflowing_symbols_are_refused_with_a_step_that_works() -> None:
    weight = torch.tensor([0.1, -3.0])
    with pytest.raises(
        SymbolOverflowError, match=r"head: the largest weight 3 over the step 1e-12 .* at least 2\.79e-09"
    ):
        UniformQuantizer(step=1e-12).quantize(weight, "head")
    assert int(UniformQuantizer(step=2.8e-9).quantize(weight).symbols.abs().max()) <= MAX_SYMBOL
    exact = UniformQuantizer(step=2.0**-30).quantize(torch.tensor([1.0, -1.0])).symbols
    assert exact.tolist() == [MAX_SYMBOL, -MAX_SYMBOL]
    with pytest.raises(SymbolOverflowError):
        UniformQuantizer(step=1e-30).quantize(torch.tensor([3e38]))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_config_round_trip(quantizer: Quantizer) -> None:
    assert quantizer_from_config(quantizer.config()) == quantizer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cubic"}, "unknown quantizer .* known: relative, uniform"),
        ({}, "unknown quantizer"),
        ({"name": "uniform", "ratio": 1.0}, "bad quantizer options"),
        ({"name": "uniform", "step": "2^-8"}, "bad quantizer options"),
        ({"name": "uniform", "step": 0.0}, "step must be a positive number"),
        ({"name": "uniform", "step": math.nan}, "step must be a positive number"),
        ({"name": "relative", "ratio": -1.0}, "ratio must be a positive number"),
        ({"name": "relative", "granularity": "column"}, "granularity must be 'tensor' or 'row', got 'column'"),
        ({"name": "uniform", "dead_zone": -0.1}, "dead_zone must be 0 or more"),
        ({"name": "uniform", "dead_zone": math.nan}, "dead_zone must be 0 or more"),
    ],
)
def test_bad_configs_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantizer_from_config(config)
