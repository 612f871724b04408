"""What is timed of the rate term, on tensors in the sizes of real models, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import rdo_kernels
from rdo.constraint import RateConstraint
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.shape import solve_shape
from rdo.errors import ConfigError
from rdo.optim import RateAdamW
from rdo_harness.gpu.timing import Operation
from rdo_kernels.fused import pooled

FAMILY = GeneralizedGaussian(eps=0.01)


def sizes_of(name: str) -> list[int]:
    """Tensor sizes of a workload by name."""
    if name == "llama-3.2-1b":
        layer = [2048 * 2048, 512 * 2048, 512 * 2048, 2048 * 2048, *[8192 * 2048] * 3]
        return [128_256 * 2048, *layer * 16]
    if name == "gpt2":
        layer = [768 * 2304, 768 * 768, 768 * 3072, 3072 * 768]
        return [50_257 * 768, 1024 * 768, *layer * 12]
    if name == "5000-small":
        return [1000 + number % 9000 for number in range(5000)]
    try:
        count = int(float(name))
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(
            f"unknown workload {name!r}: llama-3.2-1b, gpt2, 5000-small or a number of weights such as 1e8"
        )
    return [count]


def authors_step(weights: Sequence[Tensor], strength: float) -> None:
    """The rate step of BackSlash's published code, from its formula (PAPER: section 4): eps 1, no learning rate."""
    count = sum(weight.numel() for weight in weights)
    sum_abs = sum(weight.abs().sum() for weight in weights)
    sum_sq = sum(weight.square().sum() for weight in weights)
    shape = float(solve_shape(torch.as_tensor(sum_sq * count / sum_abs**2).double()))
    for weight in weights:
        weight.sub_(strength * shape / count * weight.sign() * (weight.abs() + 1).pow(shape - 1))


def operations(weights: list[Tensor]) -> list[Operation]:
    """What is timed, each beside a reference that does the same."""
    theta = FAMILY.fit(torch.tensor([1e6, 4e4, 2.5e3, 0.0, 1.0], dtype=torch.float64))
    gradients = [torch.zeros_like(weight) for weight in weights]
    seconds = [torch.full_like(weight, 1e-6) for weight in weights]
    divisors = [rdo_kernels.Preconditioner(second, 1.0, 1e-8) for second in seconds]
    scales = [1e-12] * len(weights)

    def eager_gradient() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            gradient.add_(FAMILY.slope(weight, theta), alpha=1e-12)

    def eager_proximal() -> None:
        for weight, second in zip(weights, seconds, strict=True):
            shrink = FAMILY.slope(weight, theta).abs().mul_(1e-12).div_(second.sqrt().add_(1e-8))
            weight.copy_(weight.sign() * (weight.abs() - shrink).clamp_(min=0.0))

    gathered = rdo_kernels.moments(weights)

    def step() -> None:
        nonlocal gathered
        fitted = FAMILY.fit(pooled(gathered))
        gathered = rdo_kernels.subtract_rate_gradient(weights, FAMILY, fitted, scales)[1]

    parameters = [torch.nn.Parameter(weight) for weight in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    constraint = RateConstraint([(str(i), p) for i, p in enumerate(parameters)], FAMILY, lam=1e-6)
    with_rate = RateAdamW(parameters, lr=1e-12, rate=constraint)
    without = torch.optim.AdamW(parameters, lr=1e-12, fused=True)

    def moments_eager() -> list[Tensor]:
        return [torch.stack([weight.abs().sum(), weight.square().sum()]) for weight in weights]

    return [
        Operation("moments", 4, lambda: rdo_kernels.moments(weights), "eager", moments_eager),
        Operation(
            "gradient",
            12,
            lambda: rdo_kernels.add_rate_gradient(weights, gradients, FAMILY, theta, scales),
            "eager",
            eager_gradient,
        ),
        Operation(
            "preconditioned proximal step",
            12,
            lambda: rdo_kernels.proximal_step(weights, FAMILY, theta, scales, divisors),
            "eager",
            eager_proximal,
        ),
        Operation("rate step + moments", 8, step, "authors' loop", lambda: authors_step(weights, 1e-12)),
        *_against_compiled(weights, step),
        Operation("AdamW + BackSlash", 28, with_rate.step, "torch's fused AdamW", without.step),
    ]


def _against_compiled(weights: list[Tensor], step: Callable[[], object]) -> list[Operation]:
    """The same step against torch.compile of the eager form, where a compiler is at hand: on a GPU."""
    if weights[0].device.type != "cuda":
        return []
    count, factor = sum(weight.numel() for weight in weights), torch.tensor(1e-12, device=weights[0].device)

    def eager(shape: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = weight.abs() + 1
        weight.sub_(factor * shape / count * weight.sign() * torch.exp2((shape - 1) * torch.log2(magnitude)))
        return weight.abs().sum(), weight.square().sum()

    compiled = torch.compile(eager, dynamic=True)
    shape = torch.ones((), device=weights[0].device)
    sums = [eager(shape, weight) for weight in weights]
    try:
        compiled(shape, weights[-1])
    except Exception as error:  # whatever its compilers lack here, the other timings are wanted
        print(f"torch.compile does not work here, and is not compared with: {type(error).__name__}: {error}")
        return []

    def run() -> None:
        sum_abs, sum_sq = (torch.stack(column).sum() for column in zip(*sums, strict=True))
        shape = solve_shape((sum_sq * count / sum_abs**2).double()).to(torch.float32)
        sums[:] = [compiled(shape, weight) for weight in weights]

    return [Operation("rate step + moments", 8, step, "torch.compile", run)]
