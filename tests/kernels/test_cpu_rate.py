"""The operations on a CPU, compiled and in blocks, against eager expressions and float64 formulas."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy.gaussian import Gaussian
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.laplace import Laplace
from rdo.entropy.lp import Lp
from rdo.entropy.pareto import Pareto
from rdo_kernels import Preconditioner
from rdo_kernels.cpu import blocks, pool
from tests.samples import DTYPES, SIZES, layouts, sample


@dataclass(frozen=True)
class Unknown(Lp):
    """A law of which the compiled loops know nothing."""

    device_fn: ClassVar[str | None] = None


FAMILIES = [
    (GeneralizedGaussian(eps=0.01), [0.7, 0.03]),
    (GeneralizedGaussian(eps=1.0), [1.3, 0.05]),
    (Lp(p=0.5), [0.02]),
    (Laplace(), [0.04]),
    (Gaussian(), [0.05]),
    (Pareto(), [0.03]),
    (Unknown(p=0.5), [0.02]),
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
        bits, sums = rdo_kernels.subtract_rate_gradient([weight], family, law(theta), [1e-3])
        backend = "compiled" if weight.dtype == torch.float32 and family.device_fn else "blocks"
        assert torch.equal(sums, rdo_kernels.moments([weight], backend=backend))
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
        bits, sums = rdo_kernels.proximal_step([weight], family, law(theta), [2e-4], preconditioner)
        backend = "compiled" if weight.dtype == torch.float32 and family.device_fn else "blocks"
        assert torch.equal(sums, rdo_kernels.moments([weight], backend=backend))
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
        bits, _ = rdo_kernels.subtract_rate_gradient([weight], FAMILY, THETA, [1e-3])
        results.append((moments.numpy().tobytes(), bits.numpy().tobytes(), weight.numpy().tobytes()))
    assert len(set(results)) == 1


def test_sums_barely_depend_on_the_number_of_threads() -> None:
    weight = sample((300_007,))
    one = blocks.moments([weight]), blocks.rate([weight], FAMILY, THETA)
    torch.set_num_threads(2)
    two = blocks.moments([weight]), blocks.rate([weight], FAMILY, THETA)
    torch.testing.assert_close(two[0], one[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(two[1], one[1], rtol=1e-6, atol=0)


def test_compiled_loops_give_the_same_bits_with_any_number_of_threads() -> None:
    results = set()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        weight, gradient = sample((1_300_007,)), torch.zeros(1_300_007)
        found = [
            rdo_kernels.moments([weight]),
            rdo_kernels.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1.0]),
            *rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e-4]),
            weight,
            gradient,
        ]
        results.add(b"".join(tensor.numpy().tobytes() for tensor in found))
    assert len(results) == 1


def test_threads_of_python_give_the_same_bits_as_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no libgomp to share."""
    torch.set_num_threads(3)
    found = []
    for parallel in (pool._torch_threads(), None):
        monkeypatch.setattr(pool, "_torch_threads", lambda parallel=parallel: parallel)
        weight = sample((1_300_007,))
        bits, _ = rdo_kernels.proximal_step([weight], FAMILY, THETA, [1e-4])
        found.append(bits.numpy().tobytes() + weight.numpy().tobytes())
    assert found[0] == found[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is Linux's")
def test_torch_threads_are_found_and_share_the_work() -> None:
    assert pool._torch_threads() is not None
    torch.set_num_threads(2)
    weight = sample((8_000_000,))
    rdo_kernels.rate([weight], FAMILY, THETA)
    before, begun = time.process_time(), time.thread_time()
    rdo_kernels.rate([weight], FAMILY, THETA)
    others = (time.process_time() - before) - (time.thread_time() - begun)
    assert others > 0.1 * (time.process_time() - before)


def test_tensors_of_every_kind_in_one_call() -> None:
    """Contiguous float32 goes to the compiled loops, the others to the blocks; results keep their places."""
    weights = [sample((70_001,)), sample((301, 307)).t(), sample((1000,), torch.bfloat16), sample((5,)), sample((0,))]
    gradients = [torch.zeros_like(weight) for weight in weights]
    theta = torch.tensor([[0.5, 0.02], [1.0, 0.1], [2.0, 0.05], [0.7, 0.03], [0.7, 0.03]], dtype=torch.float64)
    scales = [0.1, 0.2, 0.3, 0.4, 0.5]
    moments = rdo_kernels.moments(weights)
    bits = rdo_kernels.add_rate_gradient(weights, gradients, FAMILY, theta, scales)
    for index, weight in enumerate(weights):
        values = weight.double()
        assert moments[index, 0] == weight.numel()
        assert float(moments[index, 2]) == pytest.approx(float(values.square().sum()), rel=1e-12)
        assert float(bits[index]) == pytest.approx(float(FAMILY.surrogate(values, theta[index]).sum()), rel=2e-6)
        expected = scales[index] * FAMILY.slope(values, theta[index])
        rtol = 2 * EPSILON[weight.dtype]
        torch.testing.assert_close(gradients[index].double(), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("shape", [0.05, 0.3, 0.999, 1.0, 1.001, 1.7, 2.0, 2.5, 8.0])
@pytest.mark.parametrize("eps", [1e-30, 1e-8, 0.01, 1.0, 100.0])
def test_powers_of_any_shape_and_softening(shape: float, eps: float) -> None:
    """Weights over twelve orders of magnitude, where the compiled powers must follow float64's."""
    family, theta = GeneralizedGaussian(eps=eps), law([shape, 0.05])
    weight = torch.cat([torch.logspace(-9, 3, 20_000), -torch.logspace(-9, 3, 20_000)])
    gradient = torch.zeros_like(weight)
    bits = rdo_kernels.add_rate_gradient([weight], [gradient], family, theta, [1.0])
    expected = family.slope(weight.double(), theta)
    smallest = 1.2e-38 * shape * float(family.device_theta(theta)[1])  # what a float32 power of 0 stands for
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-6 * max(1.0, shape), atol=smallest)
    assert float(bits) == pytest.approx(float(family.surrogate(weight.double(), theta).sum()), rel=1e-5)


def test_softening_that_vanishes_in_float32() -> None:
    """|w| + eps counts as 2^-126 where it would be denormal; everything else is exact."""
    family = GeneralizedGaussian(eps=1e-40)
    weight = torch.tensor([1e-40, -1e-39, -0.01])
    gradient = torch.zeros(3)
    rdo_kernels.add_rate_gradient([weight], [gradient], family, THETA, [1e-6])
    least = torch.tensor([2.0**-126 - 1e-40, 1e-40 - 2.0**-126, -0.01], dtype=torch.float64)
    torch.testing.assert_close(gradient.double(), 1e-6 * family.slope(least, THETA), rtol=1e-4, atol=0)


def test_autograd_hears_of_every_write() -> None:
    """A weight that was saved for a backward pass and changed since must be refused there."""
    for step in (rdo_kernels.subtract_rate_gradient, rdo_kernels.proximal_step):
        weight = sample((1000,)).requires_grad_()
        loss = weight.square().sum()
        step([weight], FAMILY, THETA, [1e-3])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("module", [rdo_kernels, blocks], ids=["compiled", "blocks"])
def test_no_operation_takes_memory_of_the_weights_size(module: object) -> None:
    """What is held at once stays far below the 16 MB of the weights."""
    weight, gradient = sample((4_000_000,)), torch.zeros(4_000_000)
    second = [Preconditioner(torch.ones(4_000_000), 1.0, 1e-8)]
    operations = {
        "moments": lambda: module.moments([weight]),
        "rate": lambda: module.rate([weight], FAMILY, THETA),
        "gradient": lambda: module.add_rate_gradient([weight], [gradient], FAMILY, THETA, [1e-3]),
        "decoupled": lambda: module.subtract_rate_gradient([weight], FAMILY, THETA, [1e-6]),
        "proximal": lambda: module.proximal_step([weight], FAMILY, THETA, [1e-6], second),
    }
    for name, operation in operations.items():
        operation()  # compiles
        tracemalloc.start()  # sees numpy's memory; the profiler sees torch's
        operation()
        other = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with torch.profiler.profile(profile_memory=True) as profile:
            operation()
        held = peak = 0
        for event in profile.events():
            if event.name == "[memory]":
                held += event.cpu_memory_usage
                peak = max(peak, held)
        assert 0 < max(peak, other) < 3_000_000, f"{name} held {peak} + {other} bytes"


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
