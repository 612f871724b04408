"""Kernels on a CPU: milliseconds an operation, and what share that is of the same in torch; one thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from asv_bench.arms import (
    SHORT,
    Arm,
    figure,
    milliseconds,
    one_thread,
    ratio,
    return_freed_memory,
    skipped_where_missing,
)

EPS, TINY, SHAPE = 0.01, 1e-12, 0.7
FAMILIES: dict[str, tuple[dict[str, Any], float]] = {
    "generalized_gaussian": ({"eps": EPS}, SHAPE),
    "laplace": ({}, 1.0),
    "gaussian": ({}, 2.0),
    "lp": ({"p": 0.5, "eps": EPS}, 0.5),
    "pareto": ({}, 0.0),
}
"""Options of each family, and the power that its eager form takes."""


class Workload:
    """Weights of one law, with what an optimizer keeps beside them.

    Args:
        count: weights in all, in ``tensors`` equal tensors.
    """

    def __init__(
        self, count: int, tensors: int = 10, dtype: torch.dtype = torch.float32, family: str = "generalized_gaussian"
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        size = max(count // tensors, 1)
        self.weights = [(0.05 * torch.randn(size, generator=generator)).to(dtype) for _ in range(tensors)]
        self.gradients = [torch.zeros_like(weight) for weight in self.weights]
        with skipped_where_missing():
            from rdo.entropy import ENTROPY_MODELS, entropy_model_from_config

            if family not in ENTROPY_MODELS.names():
                raise NotImplementedError(f"this commit has no law {family!r}")
            options, self.power = FAMILIES[family]
            self.family = entropy_model_from_config({"name": family, **options})
            self.theta = self.family.fit(torch.tensor([1e6, 4e4, 2.5e3, 0.0, 1.0], dtype=torch.float64))
        self.scales = [TINY] * tensors

    def eager_slope(self, weight: Tensor) -> Tensor:
        """A power law's slope in eager torch: what every reference does, whatever the measured commit has."""
        return weight.sign() * (weight.abs() + EPS).pow(self.power - 1) * 1.5


def _moments(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    return (
        lambda: rdo_kernels.moments(work.weights),
        lambda: [(weight.abs().sum(), weight.square().sum()) for weight in work.weights],
    )


def _gradient(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    def eager() -> None:
        for weight, gradient in zip(work.weights, work.gradients, strict=True):
            gradient.add_(work.eager_slope(weight), alpha=TINY)

    arguments = work.weights, work.gradients, work.family, work.theta, work.scales
    return lambda: rdo_kernels.add_rate_gradient(*arguments), eager


def _step(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    def eager() -> None:
        for weight in work.weights:
            weight.abs().sum(), weight.square().sum()
        for weight in work.weights:
            weight.sub_(work.eager_slope(weight), alpha=TINY)

    return lambda: rdo_kernels.subtract_rate_gradient(work.weights, work.family, work.theta, work.scales), eager


def _proximal(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    seconds = [torch.full_like(weight, 1e-6) for weight in work.weights]
    divisors = [rdo_kernels.Preconditioner(second, 1.0, 1e-8) for second in seconds]

    def eager() -> None:
        for weight, second in zip(work.weights, seconds, strict=True):
            shrink = work.eager_slope(weight).abs().mul_(TINY).div_(second.sqrt().add_(1e-8))
            weight.copy_(weight.sign() * (weight.abs() - shrink).clamp_(min=0.0))

    return lambda: rdo_kernels.proximal_step(work.weights, work.family, work.theta, work.scales, divisors), eager


def _adamw(work: Workload) -> tuple[Arm, Arm]:
    """Against torch's fused AdamW, which has no rate term."""
    from rdo.constraint import RateConstraint
    from rdo.optim import RateAdamW

    parameters = [torch.nn.Parameter(weight) for weight in work.weights]
    for parameter, gradient in zip(parameters, work.gradients, strict=True):
        parameter.grad = gradient
    named = [(str(number), parameter) for number, parameter in enumerate(parameters)]
    ours = RateAdamW(parameters, lr=TINY, rate=RateConstraint(named, work.family, lam=1e-6))
    return ours.step, torch.optim.AdamW(parameters, lr=TINY, fused=True).step


def _quantise(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    steps = [0.5 * weight.float().square().mean().sqrt() for weight in work.weights]

    def eager() -> None:
        for weight, step in zip(work.weights, steps, strict=True):
            symbols = torch.round(weight / step).clamp_(-128, 127).to(torch.int8)
            torch.bincount(symbols.reshape(-1).to(torch.int64) + 128, minlength=256)

    return lambda: rdo_kernels.quantize(work.weights, steps, dtype=torch.int8), eager


def _dequantise(work: Workload) -> tuple[Arm, Arm]:
    import rdo_kernels

    steps = [0.5 * weight.float().square().mean().sqrt() for weight in work.weights]
    symbols = rdo_kernels.quantize(work.weights, steps, dtype=torch.int8).symbols
    return (
        lambda: rdo_kernels.dequantize(symbols, steps),
        lambda: [symbol * step for symbol, step in zip(symbols, steps, strict=True)],
    )


OPERATIONS: dict[str, Callable[[Workload], tuple[Arm, Arm]]] = {
    "moments": _moments,
    "gradient": _gradient,
    "rate step + moments": _step,
    "preconditioned proximal step": _proximal,
    "AdamW + rate": _adamw,
    "quantise + histogram": _quantise,
    "dequantise": _dequantise,
}
NAMES = ["gradient"] if SHORT else list(OPERATIONS)
RATE_NAMES = ["gradient"] if SHORT else ["gradient", "rate step + moments", "preconditioned proximal step"]


class Kernel:
    """Both arms of an operation, run once, so that a commit without it is skipped."""

    version = 1
    timeout = 300
    ours: Arm
    reference: Arm

    def prepare(self, operation: str, work: Workload) -> None:
        one_thread()
        with skipped_where_missing():
            self.ours, self.reference = OPERATIONS[operation](work)
            self.ours()


class BySize(Kernel):
    """Over the number of weights, float32 in ten tensors."""

    param_names = ("operation", "weights")
    params: ClassVar[Sequence[Any]] = (NAMES, [100_000] if SHORT else [10**5, 10**6, 10**7, 10**8])

    def setup(self, operation: str, weights: int) -> None:
        self.prepare(operation, Workload(weights))

    @figure("ms")
    def track_milliseconds(self, operation: str, weights: int) -> float:
        return milliseconds(self.ours)

    @figure("ours / torch", gate="ratio", weights=10**6)
    def track_ratio(self, operation: str, weights: int) -> float:
        return ratio(self.ours, self.reference)

    @figure("bytes a weight")
    def track_memory(self, operation: str, weights: int) -> float:
        return _peak_bytes(self.ours) / weights


class ByTensors(Kernel):
    """Over the number of tensors that hold a million float32 weights."""

    param_names = ("operation", "tensors")
    params: ClassVar[Sequence[Any]] = (NAMES, [10] if SHORT else [1, 100, 1000])

    def setup(self, operation: str, tensors: int) -> None:
        self.prepare(operation, Workload(10**6, tensors))

    @figure("ours / torch", gate="ratio", tensors=1000)
    def track_ratio(self, operation: str, tensors: int) -> float:
        return ratio(self.ours, self.reference)


class ByDtype(Kernel):
    """Over the data type, a million weights in ten tensors."""

    param_names = ("operation", "dtype")
    params: ClassVar[Sequence[Any]] = (
        RATE_NAMES if SHORT else ["moments", *RATE_NAMES, "quantise + histogram"],
        ["bfloat16"] if SHORT else ["float32", "bfloat16", "float16", "float64"],
    )

    def setup(self, operation: str, dtype: str) -> None:
        self.prepare(operation, Workload(10**6, dtype=getattr(torch, dtype)))

    @figure("ours / torch")
    def track_ratio(self, operation: str, dtype: str) -> float:
        return ratio(self.ours, self.reference)


class ByFamily(Kernel):
    """Over the law of the weights, a million float32 weights in ten tensors."""

    param_names = ("operation", "family")
    params: ClassVar[Sequence[Any]] = (RATE_NAMES, ["laplace"] if SHORT else list(FAMILIES))

    def setup(self, operation: str, family: str) -> None:
        self.prepare(operation, Workload(10**6, family=family))

    @figure("ours / torch")
    def track_ratio(self, operation: str, family: str) -> float:
        return ratio(self.ours, self.reference)


class AgainstCompile(Kernel):
    """Against torch.compile of the eager form: a million float32 weights in ten tensors. Needs a C++ compiler."""

    param_names = ("operation",)
    params: ClassVar[Sequence[Any]] = (RATE_NAMES[:2],)

    def setup(self, operation: str) -> None:
        if shutil.which("g++") is None:
            raise NotImplementedError("torch.compile needs a C++ compiler")
        self.prepare(operation, Workload(10**6))
        self.reference = torch.compile(self.reference)
        self.reference()

    @figure("ours / torch.compile")
    def track_ratio(self, operation: str) -> float:
        return ratio(self.ours, self.reference)


def _peak_bytes(arm: Arm) -> int:
    """Peak resident memory of a call above what was held before it."""
    with skipped_where_missing():
        from rdo_harness.resources import peak_memory_bytes, reset_peak_memory
    return_freed_memory()
    reset_peak_memory()
    before = peak_memory_bytes()
    arm()
    return peak_memory_bytes() - before
