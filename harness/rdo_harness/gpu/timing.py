"""How operations are timed: arms that alternate in one run, medians, and the bytes that must move."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def measure(operations: Sequence[Operation], weights: Sequence[Tensor], bandwidth: float, repeats: int) -> list[Timing]:
    """Time operations on these weights."""
    count, device = sum(weight.numel() for weight in weights), weights[0].device
    timings = []
    for operation in operations:
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
