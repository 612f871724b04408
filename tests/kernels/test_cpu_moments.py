"""The sums that laws are fitted from, against exact ones."""

from __future__ import annotations

import math

import pytest
import torch

import rdo_kernels
from tests.samples import DTYPES, SIZES, layouts, sample


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_moments_against_exact_sums(size: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = sample(size, dtype)
    values = weight.double().numpy().ravel()
    (row,) = rdo_kernels.moments([weight])
    count, sum_abs, sum_sq, zeros, max_abs = row.tolist()
    assert row.dtype == torch.float64
    assert sum_abs == pytest.approx(math.fsum(abs(values)), rel=1e-12)
    assert sum_sq == pytest.approx(math.fsum(values**2), rel=1e-12)
    assert (count, zeros, max_abs) == (values.size, (values == 0).sum(), abs(values).max(initial=0.0))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e18, 1e30])
def test_moments_of_extreme_scales(scale: float) -> None:
    """Squares of these leave float32 in one direction or the other; the sums must not."""
    weight = (sample((1000,)) * 20 * scale).float()
    values = weight.double().numpy()
    _, sum_abs, sum_sq, _, max_abs = rdo_kernels.moments([weight])[0].tolist()
    assert values.any()
    assert sum_abs == pytest.approx(math.fsum(abs(values)), rel=1e-12)
    assert sum_sq == pytest.approx(math.fsum(values**2), rel=1e-12)
    assert max_abs == abs(values).max()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 65535, 65536, 70000])
def test_nan_and_infinity_reach_the_moments(value: float, position: int) -> None:
    weight = sample((70001,))
    weight[position] = value
    count, sum_abs, sum_sq, zeros, max_abs = rdo_kernels.moments([weight])[0].tolist()
    for found in (sum_abs, sum_sq, max_abs):
        assert found == math.inf or (math.isnan(value) and math.isnan(found))
    assert (count, zeros) == (70001, int((weight == 0).sum()))


def test_moments_of_many_tensors_and_of_any_layout() -> None:
    weight = sample((40, 30, 20, 10))
    tensors = layouts(weight)
    rows = rdo_kernels.moments(list(tensors.values()))
    assert rows.shape == (4, len(rdo_kernels.MOMENTS))
    for row in rows:
        torch.testing.assert_close(row, rows[0], rtol=1e-14, atol=0)
    assert rdo_kernels.moments([]).shape == (0, 5)
