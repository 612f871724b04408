"""Moments, rate, gradient and steps against float64."""

from __future__ import annotations

import math

import torch

import rdo_kernels
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo_harness.kernel_checks.samples import (
    COUNTS,
    DTYPES,
    LAWS,
    check,
    close,
    same_moments,
    same_sum,
    theta_of,
    weights,
)
from rdo_kernels import Preconditioner


@check
def moments_are_exact(device: torch.device, backend: str | None) -> None:
    tensors = [weights(count, device, dtype) for dtype in DTYPES for count in COUNTS]
    found = rdo_kernels.moments(tensors, backend=backend).cpu()
    for row, tensor in zip(found.tolist(), tensors, strict=True):
        values = tensor.double().cpu().abs().numpy()
        assert row[0] == values.size
        assert math.isclose(row[1], math.fsum(values), rel_tol=1e-12, abs_tol=1e-300), (row[1], math.fsum(values))
        assert math.isclose(row[2], math.fsum(values**2), rel_tol=1e-12, abs_tol=1e-300)
        assert row[3:] == [float((values == 0).sum()), float(values.max(initial=0.0))]


@check
def moments_carry_nan_and_infinity(device: torch.device, backend: str | None) -> None:
    for value in (math.nan, math.inf, -math.inf):
        for position in (0, 65_535, 65_536, 70_000):
            tensor = weights(70_001, device)
            tensor[position] = value
            row = rdo_kernels.moments([tensor], backend=backend)[0].tolist()
            assert all(x == math.inf if math.isinf(value) else math.isnan(x) for x in (row[1], row[2], row[4])), row


@check
def rates_follow_float64(device: torch.device, backend: str | None) -> None:
    for family, values in LAWS:
        for dtype in DTYPES:
            tensors = [weights(count, device, dtype) for count in COUNTS]
            found = rdo_kernels.rate(tensors, family, theta_of(values), backend=backend)
            expected = [family.surrogate(t.double().cpu(), theta_of(values)).sum() for t in tensors]
            same_sum(found, torch.stack(expected))


@check
def gradients_follow_float64(device: torch.device, backend: str | None) -> None:
    for family, values in LAWS:
        for dtype in DTYPES:
            tensors = [weights(count, device, dtype) for count in COUNTS]
            before = [tensor.clone() for tensor in tensors]
            gradients = [weights(count, device, dtype, seed=1) for count in COUNTS]
            slopes = [0.125 * family.slope(t.double().cpu(), theta_of(values)) for t in tensors]
            expected = [g.double().cpu() + slope for g, slope in zip(gradients, slopes, strict=True)]
            scales = [0.125] * len(tensors)
            bits = rdo_kernels.add_rate_gradient(tensors, gradients, family, theta_of(values), scales, backend=backend)
            same_sum(bits, rdo_kernels.rate(before, family, theta_of(values), backend="blocks"))
            for found, wanted, slope in zip(gradients, expected, slopes, strict=True):
                close(found, wanted, dtype, scale=float(slope.abs().max()) if len(slope) else 0.0)
            assert all(map(torch.equal, tensors, before)), "the weights changed"


@check
def steps_follow_float64(device: torch.device, backend: str | None) -> None:
    for family, values in LAWS:
        for dtype in DTYPES:
            tensors = [weights(count, device, dtype) for count in COUNTS]
            doubles = [tensor.double().cpu() for tensor in tensors]
            rates = rdo_kernels.rate(tensors, family, theta_of(values), backend="blocks")
            scales = [1e-4] * len(tensors)
            law = theta_of(values)
            bits, sums = rdo_kernels.subtract_rate_gradient(tensors, family, law, scales, backend=backend)
            same_sum(bits, rates)
            same_moments(sums, tensors, backend)
            for found, w in zip(tensors, doubles, strict=True):
                close(found, w - 1e-4 * family.slope(w, theta_of(values)), dtype, scale=0.3)


@check
def proximal_steps_follow_float64(device: torch.device, backend: str | None) -> None:
    for family, values in LAWS:
        for dtype in DTYPES:
            for preconditioned in (False, True):
                tensors = [weights(count, device, dtype) for count in COUNTS]
                doubles = [tensor.double().cpu() for tensor in tensors]
                rates = rdo_kernels.rate(tensors, family, theta_of(values), backend="blocks")
                seconds = [weights(count, device, seed=2).square() for count in COUNTS]
                divisors = [Preconditioner(second, 1.5, 1e-2) for second in seconds] if preconditioned else None
                scales = [2e-4] * len(tensors)
                law = theta_of(values)
                bits, sums = rdo_kernels.proximal_step(tensors, family, law, scales, divisors, backend=backend)
                same_sum(bits, rates)
                same_moments(sums, tensors, backend)
                for found, w, second in zip(tensors, doubles, seconds, strict=True):
                    shrink = 2e-4 * family.slope(w, theta_of(values)).abs()
                    if preconditioned:
                        shrink = shrink / (second.double().cpu().sqrt() * 1.5 + 1e-2)
                    close(found, w.sign() * (w.abs() - shrink).clamp(min=0.0), dtype, scale=0.3)
                    assert bool((found.double().cpu() * w >= 0).all()), "a weight crossed zero"


@check
def zeros_denormals_and_nan(device: torch.device, backend: str | None) -> None:
    family, theta = GeneralizedGaussian(eps=0.01), theta_of([0.7, 0.03])
    tensor = torch.tensor([0.0, -0.0, 1e-40, -1e-40, math.nan, 0.05], device=device)
    gradient = torch.zeros(6, device=device)
    rdo_kernels.add_rate_gradient([tensor], [gradient], family, theta, [1.0], backend=backend)
    slope = float(family.slope(torch.tensor([0.05], dtype=torch.float64), theta))
    full = float(family.slope(torch.tensor([1e-40], dtype=torch.float64), theta))
    found = gradient.tolist()
    assert found[:2] == [0.0, 0.0], found
    # A device may flush denormals to zero, where the slope is 0.
    assert all(math.isclose(abs(x), full, rel_tol=1e-5) or (x == 0.0 and device.type != "cpu") for x in found[2:4])
    assert math.isnan(found[4])
    assert math.isclose(found[5], slope, rel_tol=1e-5)
    rdo_kernels.proximal_step([tensor], family, theta, [1e-6], backend=backend)
    assert math.isnan(float(tensor[4]))
    assert int(tensor.isnan().sum()) == 1


@check
def misaligned_views(device: torch.device, backend: str | None) -> None:
    family, theta = GeneralizedGaussian(), theta_of([0.7, 0.03])
    for offset in (1, 2, 3):
        store = weights(70_010, device)
        tensor, guard = store[offset : offset + 70_001], store.clone()
        expected = tensor.double().cpu() - 1e-4 * family.slope(tensor.double().cpu(), theta)
        rdo_kernels.subtract_rate_gradient([tensor], family, theta, [1e-4], backend=backend)
        close(tensor, expected, torch.float32, scale=0.3)
        assert torch.equal(store[:offset], guard[:offset])
        assert torch.equal(store[offset + 70_001 :], guard[offset + 70_001 :])


@check
def a_law_and_a_scale_for_each_tensor(device: torch.device, backend: str | None) -> None:
    family = GeneralizedGaussian()
    tensors = [weights(count, device, dtype) for count, dtype in ((5, DTYPES[0]), (0, DTYPES[1]), (70_001, DTYPES[2]))]
    tensors += [weights(300 + n, device, seed=n) for n in range(20)]
    generator = torch.Generator().manual_seed(3)
    theta = torch.rand(len(tensors), 2, dtype=torch.float64, generator=generator) + torch.tensor([0.3, 0.02])
    scales = [0.1 * (n + 1) for n in range(len(tensors))]
    gradients = [torch.zeros(len(tensor), device=device) for tensor in tensors]
    rdo_kernels.add_rate_gradient(tensors, gradients, family, theta, scales, backend=backend)
    for tensor, gradient, law, scale in zip(tensors, gradients, theta, scales, strict=True):
        slope = scale * family.slope(tensor.double().cpu(), law)
        close(gradient, slope, torch.float32, scale=float(slope.abs().max()) if len(slope) else 0.0)


@check
def results_repeat_to_the_bit(device: torch.device, backend: str | None) -> None:
    family, theta = GeneralizedGaussian(), theta_of([0.7, 0.03])
    results = set()
    for _ in range(3):
        tensors = [weights(count, device) for count in (140_003, 97, 65_536)]
        moments = rdo_kernels.moments(tensors, backend=backend)
        bits, sums = rdo_kernels.proximal_step(tensors, family, theta, [1e-4] * 3, backend=backend)
        results.add(b"".join(t.cpu().numpy().tobytes() for t in (moments, bits, sums, *tensors)))
    assert len(results) == 1, f"{len(results)} different results"
