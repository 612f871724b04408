"""The laws against scipy and mpmath in float64, tails included."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rdo.entropy import EntropyModel, entropy_model_from_config
from rdo.entropy.base import MAX_CODE_LENGTH_BITS
from rdo.entropy.gaussian import Gaussian
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.laplace import Laplace
from rdo.entropy.lp import Lp
from rdo.errors import ConfigError, UnknownNameError

SCALE = 0.03
SHAPES = (0.1, 0.26, 0.5, 0.85, 1.0, 1.36, 2.0, 3.0)
LAWS = [
    *[(GeneralizedGaussian(), (nu, SCALE), scipy.stats.gennorm(nu, scale=SCALE)) for nu in SHAPES],
    *[(Lp(p=p), (SCALE,), scipy.stats.gennorm(p, scale=SCALE)) for p in (0.5, 1.0, 2.0)],
    (Laplace(), (SCALE,), scipy.stats.laplace(scale=SCALE)),
    (Gaussian(), (SCALE,), scipy.stats.norm(scale=SCALE)),
]
each_law = pytest.mark.parametrize(("model", "theta", "reference"), LAWS, ids=lambda v: getattr(v, "name", None))


def float64(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@each_law
def test_cdf_against_scipy_in_both_tails(model: EntropyModel, theta: tuple[float, ...], reference: object) -> None:
    # Quantiles from 1e-300 to the middle; then the middle to 1 - 1e-12, where float64 has rounded the tail.
    x = np.concatenate([reference.ppf(np.geomspace(1e-300, 0.5, 300)), reference.isf(np.geomspace(1e-12, 0.5, 100))])
    x = x[np.isfinite(x)]
    expected = reference.cdf(x)
    assert model.cdf(float64(x), float64(theta)).numpy() == pytest.approx(expected, rel=1e-10)
    assert model.cdf(float64(x).float(), float64(theta)).dtype == torch.float64


@each_law
def test_interval_bits_against_scipy(model: EntropyModel, theta: tuple[float, ...], reference: object) -> None:
    step = 2.0**-8
    symbols = torch.tensor([0, 1, -1, 2, -3, 7, 20, -50, 100, 400])
    near, far = reference.sf((symbols.abs().numpy() + np.array([[-0.5], [0.5]])) * step)
    mass = near - far
    known = mass > 1e-290
    bits = model.interval_bits(symbols, step, float64(theta)).numpy()
    assert known.sum() >= 5
    assert bits[known] == pytest.approx(-np.log2(mass[known]), rel=1e-9)
    assert (bits[~known] > 950).all()


@pytest.mark.parametrize("shape", [0.26, 1.36, 3.0])
def test_interval_bits_of_far_symbols_against_mpmath(shape: float) -> None:
    step, model = 0.01, GeneralizedGaussian()
    symbols = [s for s in (3, 10, 40, 100, 1000, 10_000) if (s * step / SCALE) ** shape < 600]
    for symbol, bits in zip(
        symbols, model.interval_bits(torch.tensor(symbols), step, float64([shape, SCALE])).tolist(), strict=True
    ):
        with mpmath.workdps(50):
            low, high = ((mpmath.mpf(symbol) + h) * mpmath.mpf(step) for h in (-0.5, 0.5))
            tails = [mpmath.gammainc(1 / mpmath.mpf(shape), (x / mpmath.mpf(SCALE)) ** shape) for x in (low, high)]
            mass = (tails[0] - tails[1]) / mpmath.gamma(1 / mpmath.mpf(shape)) / 2
            expected = -mpmath.log(mass, 2)
        assert bits == pytest.approx(float(expected), rel=1e-11)


@each_law
def test_far_symbols_saturate_and_stay_monotone(
    model: EntropyModel, theta: tuple[float, ...], reference: object
) -> None:
    symbols = torch.cat([torch.arange(2000), torch.tensor([10**5, 10**7, 2**30])])
    bits = model.interval_bits(symbols, 2.0**-6, float64(theta))
    assert bool(bits.isfinite().all())
    assert float(bits.min()) >= 0.0
    assert float(bits.max()) <= MAX_CODE_LENGTH_BITS
    assert bool((bits.diff() >= -1e-9).all())
    assert torch.equal(bits, model.interval_bits(-symbols, 2.0**-6, float64(theta)))
    # Saturates exactly where the cell's probability has left float64.
    assert (float(bits[-1]) == MAX_CODE_LENGTH_BITS) == (reference.sf(2.0**24) < 1e-299)


@pytest.mark.parametrize("model", [GeneralizedGaussian(eps=e) for e in (1e-3, 1.0)], ids=lambda m: str(m.eps))
@pytest.mark.parametrize("shape", SHAPES)
def test_rate_and_slope_are_the_formulas(model: GeneralizedGaussian, shape: float) -> None:
    """DESIGN: surrogate ((|w|+eps) g)^nu / ln 2 and nu g^nu (|w|+eps)^(nu-1) sign(w) / ln 2, with g = 1 / scale."""
    w = np.concatenate([[0.0, -0.0], np.geomspace(1e-9, 3.0, 50), -np.geomspace(1e-9, 3.0, 50)])
    theta = float64([shape, SCALE])
    rate = ((np.abs(w) + model.eps) / SCALE) ** shape / math.log(2)
    slope = shape * SCALE**-shape * (np.abs(w) + model.eps) ** (shape - 1) * np.sign(w) / math.log(2)
    assert model.surrogate(float64(w), theta).numpy() == pytest.approx(rate, rel=1e-12)
    assert model.slope(float64(w), theta).numpy() == pytest.approx(slope, rel=1e-12)
    single = torch.from_numpy(w).float()
    assert model.surrogate(single, theta).dtype == torch.float32
    assert model.surrogate(single, theta).numpy() == pytest.approx(rate, rel=5e-6)
    assert model.slope(single, theta).numpy() == pytest.approx(slope, rel=5e-6)


@each_law
def test_rate_is_the_log_density_above_the_mode(
    model: EntropyModel, theta: tuple[float, ...], reference: object
) -> None:
    """With eps shrunk away the surrogate is -log2 f(w) / f(0)."""
    if hasattr(model, "eps"):
        model = entropy_model_from_config({**model.config(), "eps": 1e-15})
    w = np.array([1e-3, -0.01, 0.05, 0.2])
    expected = (reference.logpdf(0.0) - reference.logpdf(w)) / math.log(2)
    assert model.surrogate(float64(w), float64(theta)).numpy() == pytest.approx(expected, rel=1e-9)


def test_fixed_shapes_are_special_cases_of_the_generalized_gaussian() -> None:
    w = torch.linspace(-0.2, 0.2, 41, dtype=torch.float64)
    for fixed, theta, shape, scale in (
        (Lp(p=0.5), [SCALE], 0.5, SCALE),
        (Laplace(), [SCALE], 1.0, SCALE),
        (Gaussian(), [SCALE], 2.0, SCALE * math.sqrt(2)),
    ):
        eps = getattr(fixed, "eps", 1e-300)
        general = GeneralizedGaussian(eps=eps)
        torch.testing.assert_close(
            fixed.slope(w, float64(theta)), general.slope(w, float64([shape, scale])), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(fixed.cdf(w, float64(theta)), general.cdf(w, float64([shape, scale])))


def test_fits_of_the_fixed_shapes() -> None:
    w = np.random.default_rng(0).normal(0, 0.2, 5000)
    moments = float64([len(w), np.abs(w).sum(), (w**2).sum(), 0, np.abs(w).max()])
    assert float(Laplace().fit(moments)) == pytest.approx(np.abs(w).mean(), rel=1e-14)
    assert float(Gaussian().fit(moments)) == pytest.approx(np.sqrt((w**2).mean()), rel=1e-14)
    for p in (0.5, 1.0, 2.0):
        scale = float(Lp(p=p).fit(moments))
        assert scipy.stats.gennorm(p, scale=scale).std() == pytest.approx(np.sqrt((w**2).mean()), rel=1e-12)


@each_law
def test_unit_conversion_cancels_the_scale(model: EntropyModel, theta: tuple[float, ...], reference: object) -> None:
    """lam_bits * slope must be lam_paper * nu * (|w|+eps)^(nu-1), the derivative of lam_paper * (|w|+eps)^nu."""
    shape = {"laplace": 1.0, "gaussian": 2.0}.get(model.name) or getattr(model, "p", theta[0])
    eps = getattr(model, "eps", 0.0)
    w = float64([-0.3, -0.01, 0.002, 0.1])
    lam = 2000.0 * model.paper_factor(float64(theta))
    expected = 2000.0 * shape * (w.abs() + eps) ** (shape - 1) * w.sign()
    torch.testing.assert_close(lam * model.slope(w, float64(theta)), expected, rtol=1e-11, atol=0)


def test_laws_without_the_papers_units_say_so() -> None:
    class Other(Laplace):
        paper_factor = EntropyModel.paper_factor

    with pytest.raises(ConfigError, match="give lam in bits"):
        Other().paper_factor(float64([1.0]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "generalized_gaussian", "eps": 0.0}, "eps must be a positive number"),
        ({"name": "generalized_gaussian", "eps": math.nan}, "eps must be a positive number"),
        ({"name": "lp", "eps": math.inf}, "eps must be a positive number"),
        ({"name": "lp", "p": 0.0}, r"p must be in \(0, 4\]"),
        ({"name": "lp", "p": math.nan}, r"p must be in \(0, 4\]"),
        ({"name": "laplace", "eps": 1.0}, "bad options for entropy model 'laplace'"),
        ({"name": "lp", "p": "two"}, "bad options for entropy model 'lp'"),
    ],
)
def test_bad_options_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entropy_model_from_config(config)


def test_unknown_law_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'generalized_gaussian'"):
        entropy_model_from_config({"name": "generalised_gaussian"})
