"""The blocked operations against plain eager expressions, float64 formulas and exact sums."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy.gaussian import Gaussian
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.laplace import Laplace
from rdo.entropy.lp import Lp
from rdo_kernels import Preconditioner
from tests.samples import DTYPES, SIZES, layouts, sample

FAMILIES = [
    (GeneralizedGaussian(eps=0.01), [0.7, 0.03]),
    (GeneralizedGaussian(eps=1.0), [1.3, 0.05]),
    (Lp(p=0.5), [0.02]),
    (Laplace(), [0.04]),
    (Gaussian(), [0.05]),
]
FAMILY, THETA = FAMILIES[0][0], torch.tensor(FAMILIES[0][1], dtype=torch.float64)
EPSILON = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 1e-13}
each_family = pytest.mark.parametrize(("family", "theta"), FAMILIES, ids=lambda v: getattr(v, "name", None))


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    """A block is 65,536 weights per thread; the sizes here straddle it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_python(script: str) -> str:
    """Output of a script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, env=environment
    ).stdout


def law(theta: list[float]) -> Tensor:
    return torch.tensor(theta, dtype=torch.float64)


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rate_against_the_formula_in_float64(family: object, theta: list[float], dtype: torch.dtype) -> None:
    for size in SIZES:
        weight = sample(size, dtype)
        expected = float(family.surrogate(weight.double(), law(theta)).sum())
        assert float(rdo_kernels.rate([weight], family, law(theta))) == pytest.approx(expected, rel=2e-6)


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_is_added(family: object, theta: list[float], dtype: torch.dtype) -> None:
    for size in SIZES:
        weight, gradient = sample(size, dtype), sample(size, dtype, seed=1)
        before = weight.clone()
        expected = gradient.double() + 0.125 * family.slope(weight.double(), law(theta))
        bits = rdo_kernels.add_rate_gradient([weight], [gradient], family, law(theta), [0.125])
        rtol = EPSILON[dtype] * 4
        torch.testing.assert_close(gradient.double(), expected, rtol=rtol, atol=rtol)
        assert torch.equal(weight, before)
        assert float(bits) == pytest.approx(float(rdo_kernels.rate([weight], family, law(theta))), rel=1e-12)


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_is_subtracted(family: object, theta: list[float], dtype: torch.dtype) -> None:
    for size in SIZES:
        weight = sample(size, dtype)
        expected = weight.double() - 1e-3 * family.slope(weight.double(), law(theta))
        rate = rdo_kernels.rate([weight], family, law(theta))
        bits = rdo_kernels.subtract_rate_gradient([weight], family, law(theta), [1e-3])
        torch.testing.assert_close(weight.double(), expected, rtol=EPSILON[dtype], atol=EPSILON[dtype])
        assert float(bits) == pytest.approx(float(rate), rel=1e-12)


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_proximal_step(family: object, theta: list[float], dtype: torch.dtype, preconditioned: bool) -> None:
    for size in SIZES:
        weight, moment = sample(size, dtype), sample(size, seed=1).square()
        w = weight.double().clone()
        shrink = 2e-4 * family.slope(w, law(theta)).abs()
        preconditioner = None
        if preconditioned:
            preconditioner = [Preconditioner(moment, 1.5, 1e-2)]
            shrink = shrink / (moment.double().sqrt() * 1.5 + 1e-2)
        expected = w.sign() * (w.abs() - shrink).clamp(min=0.0)
        rate = rdo_kernels.rate([weight], family, law(theta))
        bits = rdo_kernels.proximal_step([weight], family, law(theta), [2e-4], preconditioner)
        torch.testing.assert_close(weight.double(), expected, rtol=EPSILON[dtype], atol=EPSILON[dtype])
        assert bool((weight.double() * w >= 0).all()), "a weight crossed zero"
        assert float(bits) == pytest.approx(float(rate), rel=1e-12)
        clear = (w.abs() - shrink) < -1e-4
        assert not weight[clear].any()
        if weight.numel() > 1000 and family.name != "gaussian":  # whose slope vanishes with the weight
            assert clear.any()


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("other_layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("size", [(5, 7, 3, 2), (65, 33, 9, 8)], ids=str)
def test_every_pair_of_layouts(weight_layout: str, other_layout: str, size: tuple[int, ...]) -> None:
    """A gradient or a second moment may be laid out differently from its weight."""
    weight, other = sample(size), sample(size, seed=1)
    slope = FAMILY.slope(weight, THETA)
    laid_out, gradient = layouts(weight)[weight_layout], layouts(other)[other_layout]
    rdo_kernels.add_rate_gradient([laid_out], [gradient], FAMILY, THETA, [0.5])
    torch.testing.assert_close(gradient, other + 0.5 * slope)
    rdo_kernels.subtract_rate_gradient([laid_out], FAMILY, THETA, [1e-4])
    torch.testing.assert_close(laid_out, weight - 1e-4 * slope)
    laid_out, moment = layouts(weight)[weight_layout], layouts(other.square())[other_layout]
    rdo_kernels.proximal_step([laid_out], FAMILY, THETA, [1e-4], [Preconditioner(moment, 2.0, 0.1)])
    shrink = 1e-4 * slope.abs() / (2.0 * other.abs() + 0.1)
    torch.testing.assert_close(laid_out, weight.sign() * (weight.abs() - shrink).clamp(min=0.0))


def test_memory_between_strided_weights_is_left_alone() -> None:
    store = torch.full((4, 9), 7.0)
    weight = store[:, ::3].copy_(sample((4, 3)))
    rdo_kernels.subtract_rate_gradient([weight], FAMILY, THETA, [1e-3])
    rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e-3])
    untouched = torch.ones_like(store, dtype=torch.bool)
    untouched[:, ::3] = False
    assert bool((store[untouched] == 7.0).all())


def test_a_law_and_a_scale_per_tensor() -> None:
    weights = [sample((size,), seed=size) for size in (5, 0, 65537)]
    theta = torch.tensor([[0.5, 0.02], [1.0, 0.1], [2.0, 0.05]], dtype=torch.float64)
    scales = [0.1, 0.2, 0.3]
    bits = rdo_kernels.rate(weights, FAMILY, theta)
    assert bits.shape == (3,)
    assert bits.dtype == torch.float64
    gradients = [torch.zeros_like(weight) for weight in weights]
    rdo_kernels.add_rate_gradient(weights, gradients, FAMILY, theta, scales)
    for index, weight in enumerate(weights):
        assert float(bits[index]) == pytest.approx(
            float(FAMILY.surrogate(weight.double(), theta[index]).sum()), rel=1e-6
        )
        torch.testing.assert_close(gradients[index], scales[index] * FAMILY.slope(weight, theta[index]))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_stay_and_feel_no_slope(zero: float) -> None:
    weight, gradient = torch.full((100,), zero), torch.zeros(100)
    rdo_kernels.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1e6])
    rdo_kernels.subtract_rate_gradient([weight], FAMILY, THETA, [1e6])
    rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e6])
    assert not weight.any()
    assert not gradient.any()


def test_denormals_feel_the_full_slope() -> None:
    weight, gradient = torch.tensor([1e-40, -1e-40]), torch.zeros(2)
    rdo_kernels.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1.0])
    expected = FAMILY.slope(torch.tensor([1e-40, -1e-40], dtype=torch.float64), THETA)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=0)


def test_nan_spoils_only_itself() -> None:
    weight = sample((1000,))
    weight[500] = math.nan
    gradient = torch.zeros(1000)
    rdo_kernels.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1.0])
    rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e-3])
    for values in (weight, gradient):
        assert math.isnan(values[500])
        assert int(values.isnan().sum()) == 1


def test_same_bits_from_run_to_run_and_wherever_the_weights_lie() -> None:
    values = sample((200_003,))
    store = torch.empty(200_100)
    results = []
    for offset in (0, 1, 7, 16, 64):
        weight = store[offset : offset + 200_003].copy_(values)
        moments = rdo_kernels.moments([weight])
        bits = rdo_kernels.subtract_rate_gradient([weight], FAMILY, THETA, [1e-3])
        results.append((moments.numpy().tobytes(), bits.numpy().tobytes(), weight.numpy().tobytes()))
    assert len(set(results)) == 1


def test_sums_barely_depend_on_the_number_of_threads() -> None:
    weight = sample((300_007,))
    one = rdo_kernels.moments([weight]), rdo_kernels.rate([weight], FAMILY, THETA)
    torch.set_num_threads(2)
    two = rdo_kernels.moments([weight]), rdo_kernels.rate([weight], FAMILY, THETA)
    torch.testing.assert_close(two[0], one[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(two[1], one[1], rtol=1e-6, atol=0)


def test_no_operation_takes_memory_of_the_weights_size() -> None:
    """The largest single allocation, and what is held at once, stay far below the 16 MB of the weights."""
    weight, gradient = sample((4_000_000,)), torch.zeros(4_000_000)
    second = [Preconditioner(torch.ones(4_000_000), 1.0, 1e-8)]
    operations = {
        "moments": lambda: rdo_kernels.moments([weight]),
        "rate": lambda: rdo_kernels.rate([weight], FAMILY, THETA),
        "gradient": lambda: rdo_kernels.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1e-3]),
        "decoupled": lambda: rdo_kernels.subtract_rate_gradient([weight], FAMILY, THETA, [1e-6]),
        "proximal": lambda: rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e-6], second),
    }
    for name, operation in operations.items():
        with torch.profiler.profile(profile_memory=True) as profile:
            operation()
        held = peak = 0
        for event in profile.events():
            if event.name == "[memory]":
                held += event.cpu_memory_usage
                peak = max(peak, held)
        assert 0 < peak < 3_000_000, f"{name} held {peak} bytes"


@pytest.mark.slow
def test_peak_memory_of_a_large_model() -> None:
    """A process with 40M weights (160 MB) and as many gradients grows by less than 40 MB in all operations."""
    pytest.importorskip("resource")
    script = """
import resource, torch, rdo_kernels
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
family, theta = GeneralizedGaussian(), torch.tensor([0.8, 0.03], dtype=torch.float64)
def run(n):
    weight, gradient = torch.full((n,), 0.01), torch.full((n,), 0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rdo_kernels.moments([weight])
    rdo_kernels.add_rate_gradient([weight], [gradient], family, theta, [1e-3])
    rdo_kernels.subtract_rate_gradient([weight], family, theta, [1e-6])
    rdo_kernels.proximal_step([weight], family, theta, [1e-6])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(100_000)
print(run(40_000_000))
"""
    assert int(run_python(script)) * (1 if sys.platform == "darwin" else 1024) < 40e6


def test_importing_the_kernels_loads_no_compiler() -> None:
    script = "import sys, rdo_kernels; print([m for m in ('numba', 'triton', 'scipy') if m in sys.modules])"
    assert run_python(script).strip() == "[]"
