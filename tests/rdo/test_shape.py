"""Moment matching of the generalized Gaussian's shape against independent solvers."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import rdo_kernels
from rdo.entropy.generalized_gaussian import GeneralizedGaussian, scale_of
from rdo.entropy.shape import MAX_SHAPE, MIN_SHAPE, moment_ratio, solve_shape


def float64(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def ratio_mpmath(shape: float) -> float:
    with mpmath.workdps(40):
        inverse = 1 / mpmath.mpf(shape)
        return mpmath.gamma(inverse) * mpmath.gamma(3 * inverse) / mpmath.gamma(2 * inverse) ** 2


def fit(weights: torch.Tensor) -> tuple[float, float]:
    shape, scale = GeneralizedGaussian().fit(rdo_kernels.moments([weights])[0]).tolist()
    return shape, scale


def test_solver_inverts_the_moment_ratio() -> None:
    shapes = np.concatenate([np.linspace(0.1, 3.0, 59), [0.10001, 0.26, 0.85, 1.3625, 2.99999]])
    ratios = float64([float(ratio_mpmath(shape)) for shape in shapes])
    assert np.abs(solve_shape(ratios).numpy() - shapes).max() < 1e-10
    assert np.abs(moment_ratio(float64(shapes)).numpy() / ratios.numpy() - 1).max() < 1e-12


@pytest.mark.parametrize("ratio", [1.4625, 1.5, 2.0, 7.3, 50.0, 200.0])
def test_solver_agrees_with_a_bracketed_root(ratio: float) -> None:
    root = scipy.optimize.brentq(lambda shape: float(mpmath.log(ratio_mpmath(shape) / ratio)), 0.1, 3.0, xtol=1e-14)
    assert float(solve_shape(float64(ratio))) == pytest.approx(root, abs=1e-10)


def test_agrees_with_the_authors_table_to_its_resolution() -> None:
    grid = np.arange(0.1, 3.0 + 1e-9, 0.01)
    inverse = 1 / grid
    table = np.array([math.gamma(i) * math.gamma(3 * i) / math.gamma(2 * i) ** 2 for i in inverse])
    for shape in np.random.default_rng(0).uniform(0.1, 3.0, 200):
        ratio = float(ratio_mpmath(shape))
        nearest = grid[np.abs(table - ratio).argmin()]
        assert abs(float(solve_shape(float64(ratio))) - nearest) <= 0.01


def test_monotone_and_clamped_over_every_ratio() -> None:
    ratios = float64(np.concatenate([[0.0, 1e-300, 1.0], 1 + np.geomspace(1e-12, 1e300, 5000), [math.inf]]))
    shapes = solve_shape(ratios)
    assert bool((shapes.diff() <= 0).all())
    assert float(shapes[0]) == float(solve_shape(float64(1.0))) == MAX_SHAPE
    assert float(shapes[-1]) == MIN_SHAPE


def test_keeps_the_size_and_defines_nan() -> None:
    ratios = float64([[2.0, math.nan, 1.5], [1e9, 1.0, -1.0]])
    shapes = solve_shape(ratios)
    assert shapes.shape == (2, 3)
    assert shapes.dtype == torch.float64
    assert float(shapes[0, 1]) == float(shapes[1, 2]) == 1.0
    assert float(solve_shape(ratios.T).T[0, 2]) == float(shapes[0, 2])


@pytest.mark.parametrize("shape", [0.3, 0.6, 0.85, 1.0, 1.36, 2.0, 2.7])
def test_recovers_the_law_of_samples(shape: float) -> None:
    samples = scipy.stats.gennorm.rvs(shape, scale=0.03, size=200_000, random_state=1)
    found_shape, found_scale = fit(torch.from_numpy(samples).float())
    assert found_shape == pytest.approx(shape, rel=0.03)
    assert found_scale == pytest.approx(0.03, rel=0.15 if shape < 0.5 else 0.03)


@pytest.mark.parametrize("shape", [0.1, 0.105, 0.15, 0.5, 1.0, 2.0, 3.0])
def test_scale_matches_the_variance_at_every_shape(shape: float) -> None:
    """At shape 0.1 the scale is 1e-14 for weights of 0.05: a floor on the scale itself would change the law."""
    inverse = 1 / mpmath.mpf(shape)
    expected = 0.05 * mpmath.sqrt(mpmath.gamma(inverse) / mpmath.gamma(3 * inverse))
    assert float(scale_of(float64(shape), float64(0.05**2))) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "shape"),
    [
        (torch.zeros(100), 1.0),
        (torch.zeros(0), 1.0),
        (torch.full((100,), 0.3), MAX_SHAPE),
        (torch.tensor([-0.2]), MAX_SHAPE),
        (torch.tensor(0.7), MAX_SHAPE),
        (torch.cat([torch.tensor([0.5, -0.1]), torch.zeros(10**6)]), MIN_SHAPE),
        (torch.full((10,), 1e-42), MAX_SHAPE),
    ],
    ids=["zeros", "empty", "constant", "one", "0-d", "many zeros", "denormal"],
)
def test_degenerate_weights_give_a_finite_law(weights: torch.Tensor, shape: float) -> None:
    found_shape, found_scale = fit(weights)
    assert found_shape == shape
    assert 0.0 < found_scale < 2.0
    theta = float64([found_shape, found_scale])
    model = GeneralizedGaussian()
    assert bool(model.surrogate(weights, theta).isfinite().all())
    assert bool(model.slope(weights, theta).isfinite().all())


def test_nan_moments_fall_back_to_a_finite_law() -> None:
    assert all(map(math.isfinite, fit(torch.tensor([0.1, math.nan]))))
    assert all(map(math.isfinite, fit(torch.tensor([0.1, math.inf]))))


def test_fits_many_tensors_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) for size in (1, 17, 1000)]
    rows = rdo_kernels.moments(weights)
    together = GeneralizedGaussian().fit(rows)
    assert together.shape == (3, 2)
    assert torch.equal(together, torch.stack([GeneralizedGaussian().fit(row) for row in rows]))
