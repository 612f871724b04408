"""What every registered plug-in must satisfy; a new one enters by being registered.

Each check takes a plug-in and raises AssertionError. ``VARIANTS`` names settings beyond the defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rdo_kernels
from rdo.coders import CODERS, EntropyCoder, Histogram, coder_from_config
from rdo.entropy import ENTROPY_MODELS, EntropyModel, entropy_model_from_config
from rdo.errors import ConfigError
from rdo_harness.methods.base import Method
from rdo_harness.methods.lossless import Lossless
from rdo_harness.methods.peer import PeerMethod

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "generalized_gaussian": [{"eps": 1.0}, {"eps": 1e-4}],
    "lp": [{"p": 0.5}, {"p": 2.0, "eps": 1.0}],
    "pareto": [{"tail": 3.0}],
    "exp_golomb": [{"k": None}, {"k": 3, "mapping": "zigzag"}],
}


def entropy_models() -> Iterator[EntropyModel]:
    """Every registered law with its defaults and with the settings of VARIANTS."""
    for name, family in ENTROPY_MODELS.items():
        yield from (family(**options) for options in [{}, *VARIANTS.get(name, [])])


def coders() -> Iterator[EntropyCoder]:
    """Every registered coder with its defaults and with the settings of VARIANTS."""
    for name, coder in CODERS.items():
        yield from (coder(**options) for options in [{}, *VARIANTS.get(name, [])])


def weights(size: int = 4000, seed: int = 0, scale: float = 0.04) -> Tensor:
    """Weights with heavier tails than a Gaussian; float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return scale * normal[0] * normal[1].abs()


def fitted(model: EntropyModel, weight: Tensor) -> Tensor:
    """Theta of the law fitted to some weights."""
    return model.fit(rdo_kernels.moments([weight])[0])


def check_description(model: EntropyModel | EntropyCoder) -> None:
    """A frozen dataclass whose config survives JSON, under the name it is registered by."""
    registry = ENTROPY_MODELS if isinstance(model, EntropyModel) else CODERS
    rebuild = entropy_model_from_config if isinstance(model, EntropyModel) else coder_from_config
    assert is_dataclass(model)
    assert type(model).__dataclass_params__.frozen
    assert type(model).__doc__
    assert registry.get(model.name) is type(model)
    assert rebuild(json.loads(json.dumps(model.config()))) == model
    hash(model)


def check_slope(model: EntropyModel) -> None:
    """The slope is the derivative of the rate: by autograd and by central differences; 0 at zero; odd."""
    theta = fitted(model, weights())
    w = weights(200, seed=1).requires_grad_()
    rate = model.surrogate(w, theta)
    slope = model.slope(w.detach(), theta)
    (gradient,) = torch.autograd.grad(rate.sum(), w)
    torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=0)
    with torch.no_grad():
        h = 1e-4 * w.abs()
        differences = (model.surrogate(w + h, theta) - model.surrogate(w - h, theta)) / (2 * h)
    torch.testing.assert_close(slope, differences, rtol=1e-5, atol=1e-6 * float(slope.abs().max()))
    torch.testing.assert_close(model.slope(-w.detach(), theta), -slope, rtol=0, atol=0)
    assert bool((slope * w >= 0).all()), "the rate must not fall away from zero"
    for zero in (0.0, -0.0):
        assert not model.slope(torch.tensor([zero]), theta).any()
    for dtype in (torch.float32, torch.float64):
        found = model.rate_and_slope(torch.ones(2, 3, dtype=dtype), theta)
        assert all(tensor.dtype == dtype and tensor.shape == (2, 3) for tensor in found)
    both = model.rate_and_slope(w.detach(), theta)
    assert torch.equal(both[0], rate.detach())
    assert torch.equal(both[1], slope)


def check_fused_kernels(model: EntropyModel) -> None:
    """The operations on a CPU agree with the law's own expressions, also for a law per tensor."""
    tensors = [weights(n, seed=n).float() for n in (0, 1, 97, 70_001)]
    theta = model.fit(rdo_kernels.moments(tensors))
    assert theta.shape == (4, len(model.theta_names))
    gradients = [torch.zeros_like(w) for w in tensors]
    bits = rdo_kernels.add_rate_gradient(tensors, gradients, model, theta, [0.5] * 4)
    for w, law, gradient, total in zip(tensors, theta, gradients, bits.tolist(), strict=True):
        torch.testing.assert_close(law, fitted(model, w))
        expected = model.slope(w.double(), law)
        torch.testing.assert_close(gradient.double(), 0.5 * expected, rtol=1e-5, atol=1e-6)
        assert math.isclose(total, float(model.surrogate(w.double(), law).sum()), rel_tol=1e-5)


def check_cdf(model: EntropyModel) -> None:
    """Monotone from 0 to 1, symmetric, a half at zero, in float64 whatever the input."""
    theta = fitted(model, weights())
    positive = torch.logspace(-9, 8, 3000, dtype=torch.float64)
    x = torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])
    cdf = model.cdf(x, theta)
    assert bool((cdf.diff() >= 0).all())
    assert float(cdf[0]) < 1e-9
    assert float(cdf[-1]) > 1 - 1e-9
    assert float(model.cdf(torch.zeros(()), theta)) == 0.5
    torch.testing.assert_close(cdf + cdf.flip(0), torch.ones_like(cdf), rtol=0, atol=1e-15)
    assert model.cdf(torch.zeros(3, dtype=torch.float32), theta).dtype == torch.float64


def check_interval_bits(model: EntropyModel) -> None:
    """Code lengths are the probabilities of the cells, symmetric, never negative, finite however far."""
    theta = fitted(model, weights())
    for step in (2.0**-8, 0.04, 10.0):
        reach = 1 + round(60 / step)
        symbols = torch.arange(-reach, reach + 1)
        bits = model.interval_bits(symbols, step, theta)
        assert bits.dtype == torch.float64
        assert float(bits.min()) >= 0.0
        end = torch.tensor((reach + 0.5) * step, dtype=torch.float64)
        inside = float(model.cdf(end, theta) - model.cdf(-end, theta))  # of a heavy tail some is beyond
        assert abs(float(torch.exp2(-bits).sum()) - inside) < 1e-9
        assert torch.equal(bits, bits.flip(0))
        assert bool((bits[reach:].diff() > -1e-6).all())
    assert bool(model.interval_bits(torch.tensor([2**30, -(2**30)], dtype=torch.int32), 1e30, theta).isfinite().all())


def check_fit(model: EntropyModel) -> None:
    """Finite for every input, equivariant to the scale of the weights, and better than a law ten times as wide."""
    one, zeros = torch.tensor([0.3]), torch.zeros(99_999)
    for w in (zeros[:0], zeros, one, -one, one.expand(9), torch.cat([one, zeros])):
        theta = fitted(model, w)
        assert bool(theta.isfinite().all())
        assert all(bool(t.isfinite().all()) for t in model.rate_and_slope(w, theta))
        bits = model.interval_bits(torch.tensor([0, 1, -5]), 0.01, theta)
        assert bool(bits.isfinite().all())
        assert float(bits.min()) >= 0.0
    w = weights()
    symbols = torch.round(w / 0.01)

    def cost(scale: float) -> float:
        return float(model.interval_bits(symbols, 0.01, fitted(model, w * scale)).mean())

    assert cost(1.0) < min(cost(10.0), cost(0.1))
    near = model.interval_bits(symbols, 0.01, fitted(model, w))
    far = model.interval_bits(symbols, 0.64, fitted(model, w * 64))
    torch.testing.assert_close(near, far, rtol=1e-7, atol=1e-9)


def sequences() -> dict[str, np.ndarray[Any, np.dtype[np.int32]]]:
    """Symbols that a coder must bring back exactly."""
    generator = np.random.default_rng(0)
    laplace = np.round(generator.laplace(0, 2.0, 20_011)).astype(np.int32)
    outlier = laplace.copy()
    outlier[[5, 77]] = 2**30, -(2**30)
    return {
        "empty": np.empty(0, np.int32),
        "one": np.array([-3], np.int32),
        "largest": np.array([2**30], np.int32),
        "zeros": np.zeros(1000, np.int32),
        "constant": np.full(17, -9, np.int32),
        "extremes": np.array([-(2**30), 2**30, 0, -1, 1], np.int32),
        "two": np.array([4, 4, -4] * 33, np.int32),
        "laplace": laplace,
        "outliers": outlier,
        "uniform": generator.integers(-500, 500, 5003).astype(np.int32),
        "sparse": (generator.random(8192) < 0.01).astype(np.int32),
        "all different": generator.permutation(np.arange(-700, 700)).astype(np.int32),
    }


def check_coder(coder: EntropyCoder, symbols: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    """Exact round trip, the same bytes each time, a size that was foretold, at least the entropy, input untouched."""
    before = symbols.copy()
    stream = coder.encode(symbols)
    decoded = coder.decode(stream, symbols.size)
    assert np.array_equal(symbols, before)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)
    again = coder.encode(symbols)
    assert np.array_equal(stream.table, again.table)
    assert np.array_equal(stream.payload, again.payload)
    histogram = Histogram.of(symbols)
    if coder.exact_size:
        assert abs(coder.size_bytes(histogram) - stream.nbytes) <= 16 + 1e-3 * stream.nbytes
        assert 8 * stream.nbytes >= histogram.entropy_bits()
    else:
        # What symbols in no order would take; coders that use an order may also find it where there is none.
        assert 0 <= coder.size_bytes(histogram) <= 16 + 1.01 * histogram.entropy_bits() / 8
    for row_length in (7, 64, max(symbols.size, 1), 10**6):
        beside = coder.encode(symbols, row_length)
        assert np.array_equal(coder.decode(beside, symbols.size, row_length), symbols)


def check_method(method_type: type[Method]) -> None:
    """Every option but lambdas, sizes, qualities, steps has a default, the label is the name, points are distinct."""
    names = {field.name for field in fields(method_type)}
    if issubclass(method_type, Lossless):
        (point,) = method_type().points()
        assert "bfloat16" in point.describe()
        with pytest.raises(ConfigError, match="lossless methods keep the weights, as bfloat16"):
            method_type(steps=("2^-6",))
        return
    peer = issubclass(method_type, PeerMethod)
    goal = next((name for name in ("bits", "increases") if name in names and not peer), None)
    required: dict[str, Any] = {goal: (1.5, 3.0)} if goal else {"lams": (0.1, 1.0)} if "lams" in names else {}
    steps: dict[str, Any] = {} if goal else {"relative_steps": (), "steps": ("2^-6", "2^-4")}
    method = method_type(**steps, **required)
    assert method.label == method.name
    assert method_type(label="another", **steps, **required).label == "another"
    assert method_type.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert json.loads(json.dumps(method.config())) == method.config()
    points = method.points()
    assert len(points) >= 2
    assert all(point not in points[:index] for index, point in enumerate(points))
    assert all(point.describe() for point in points)
    if goal:
        option = {"bits": "bits", "increases": "increase"}[goal]
        asked = {getattr(point.rate, option) if point.rate else point.options[option] for point in points}
        assert asked == {1.5, 3.0}
        with pytest.raises(ValueError, match=r"at least one (size|quality)"):
            method_type()
        return
    assert {quantizer.config()["step"] for quantizer in method.quantizers()} == {2.0**-6, 2.0**-4}
    with pytest.raises(ValueError, match="at least one quantisation step"):
        method_type(relative_steps=(), **required)
    if not peer or points[0].quantizer:  # else the peer rounds, and steps are for what it leaves alone
        assert {point.config()["quantizer"]["step"] for point in points} == {2.0**-6, 2.0**-4}


ENTROPY_MODEL_CHECKS = (
    check_description,
    check_slope,
    check_fused_kernels,
    check_cdf,
    check_interval_bits,
    check_fit,
)
