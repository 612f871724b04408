"""Proves every kernel on this machine, then times it: ``python -m rdo_harness.gpu`` (``--cpu`` without a GPU).

Nothing is timed while a check is red. Arms alternate within one run, and ratios are of medians; the bandwidth that
kernels are compared with is that of a copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

import rdo_kernels
from rdo.constraint import RateConstraint
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.shape import solve_shape
from rdo.errors import ConfigError
from rdo.optim import RateAdamW
from rdo_harness import kernel_checks
from rdo_harness.resources import provenance
from rdo_harness.tables import human_bytes
from rdo_kernels.fused import pooled

FAMILY = GeneralizedGaussian(eps=0.01)


@dataclass(frozen=True)
class Timing:
    """One operation at one size.

    Attributes:
        milliseconds, reference_milliseconds: medians.
        bytes_per_weight: what the operation must move, its floor.
        share: of the measured copy bandwidth at that floor.
        extra_bytes: peak GPU memory above what was held before; None on a CPU, where no allocator keeps count.
    """

    operation: str
    weights: int
    tensors: int
    milliseconds: float
    reference: str
    reference_milliseconds: float
    bytes_per_weight: int
    share: float
    extra_bytes: int | None

    @property
    def ratio(self) -> float:
        return self.milliseconds / self.reference_milliseconds


@dataclass(frozen=True)
class Operation:
    name: str
    bytes_per_weight: int
    ours: Callable[[], object]
    reference_name: str
    reference: Callable[[], object]


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
    sums = [eager(torch.ones((), device=weight.device), weight) for weight in weights]

    def run() -> None:
        sum_abs, sum_sq = (torch.stack(column).sum() for column in zip(*sums, strict=True))
        shape = solve_shape((sum_sq * count / sum_abs**2).double()).to(torch.float32)
        sums[:] = [compiled(shape, weight) for weight in weights]

    return [Operation("rate step + moments", 8, step, "torch.compile", run)]


def median_milliseconds(arms: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Medians of alternating runs, after two of each that do not count."""
    times: list[list[float]] = [[] for _ in arms]
    for number in range(repeats + 2):
        for arm, taken in zip(arms, times, strict=True):
            seconds = _timed(arm, device)
            if number >= 2:
                taken.append(1e3 * seconds)
    return [statistics.median(taken) for taken in times]


def _timed(arm: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    arm()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def copy_bandwidth(device: torch.device, count: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source, target = torch.zeros(count, device=device), torch.empty(count, device=device)
    (milliseconds,) = median_milliseconds([lambda: target.copy_(source)], device, 15)
    return 8 * count / (milliseconds / 1e3)


def measure(workload: str, device: torch.device, bandwidth: float, repeats: int) -> list[Timing]:
    """Time every operation on tensors of a workload's sizes."""
    generator = torch.Generator(device=device).manual_seed(0)
    weights = [0.05 * torch.randn(size, device=device, generator=generator) for size in sizes_of(workload)]
    count = sum(weight.numel() for weight in weights)
    timings = []
    for operation in operations(weights):
        extra = _extra_bytes(operation.ours, device)
        ours, reference = median_milliseconds([operation.ours, operation.reference], device, repeats)
        floor = operation.bytes_per_weight * count / bandwidth
        timings.append(
            Timing(
                operation.name,
                count,
                len(weights),
                ours,
                operation.reference_name,
                reference,
                operation.bytes_per_weight,
                floor / (ours / 1e3),
                extra,
            )
        )
    return timings


def _extra_bytes(arm: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    arm()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rdo_harness.gpu", description="Check every kernel on this machine, then time it."
    )
    parser.add_argument("--cpu", action="store_true", help="on the CPU instead of the GPU")
    parser.add_argument(
        "--workloads",
        metavar="A,B",
        help="llama-3.2-1b, gpt2, 5000-small or numbers of weights (default: these three; on a CPU the last two)",
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not arguments.cpu and not torch.cuda.is_available():
        parser.error("no GPU was found; --cpu runs on the CPU")
    chosen = arguments.workloads or ("gpt2,5000-small" if arguments.cpu else "llama-3.2-1b,gpt2,5000-small")
    workloads = [workload.strip() for workload in chosen.split(",")]
    try:
        for workload in workloads:
            sizes_of(workload)
    except ConfigError as error:
        parser.error(str(error))
    device = torch.device("cpu" if arguments.cpu else "cuda")
    print(f"checks on {_name(device)}")
    results = kernel_checks.run(device, None)
    for name, message in results.items():
        print(f"  {'failed' if message else 'passed'}  {name.replace('_', ' ')}{': ' + message if message else ''}")
    if any(results.values()):
        print("nothing is timed while a check fails", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(device, 1 << (26 if arguments.cpu else 28))
    print(f"copy bandwidth {human_bytes(bandwidth)}/s")
    timings: list[Timing] = []
    for workload in workloads:
        timings += measure(workload, device, bandwidth, arguments.repeats)
    _print(timings)
    print(f"written: {_write(arguments.out, device, bandwidth, results, timings)}")
    return 0


def _print(timings: Sequence[Timing]) -> None:
    """A table without rich, which a machine borrowed for its GPU may lack."""
    lines = [("operation", "weights", "tensors", "ms", "reference", "reference ms", "ratio", "of copy", "extra memory")]
    for t in timings:
        extra = "not measured" if t.extra_bytes is None else human_bytes(t.extra_bytes)
        measured = f"{t.milliseconds:.3f}", t.reference, f"{t.reference_milliseconds:.3f}", f"{t.ratio:.3f}"
        lines.append((t.operation, f"{t.weights:,}", f"{t.tensors:,}", *measured, f"{t.share:.0%}", extra))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if number in (0, 4) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _write(
    folder: Path, device: torch.device, bandwidth: float, checks: dict[str, str], timings: Sequence[Timing]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{_name(device).lower().replace(' ', '-')}-{now:%Y-%m-%dT%H%M}.json"
    content = {
        **provenance(),
        "device": _name(device),
        "copy_bytes_per_second": bandwidth,
        "checks": checks,
        "timings": [{**asdict(timing), "ratio": timing.ratio} for timing in timings],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
