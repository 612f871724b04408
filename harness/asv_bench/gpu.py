"""What ``python -m rdo_harness.gpu`` measures, on a GPU: synchronised, alternating arms, medians.

asv runs it with ``--launch-method spawn``; it is skipped without a GPU. The command itself adds rows under these names,
see ``rdo_harness/gpu/history.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from asv_bench.arms import SHORT, figure, skipped_where_missing

OPERATIONS = [
    "moments / eager",
    "gradient / eager",
    "preconditioned proximal step / eager",
    "rate step + moments / authors' loop",
    "rate step + moments / torch.compile",
    "AdamW + BackSlash / torch's fused AdamW",
    "quantise + histogram / eager",
    "dequantise / eager",
]
REPEATS = 3 if SHORT else 15


def device() -> torch.device:
    if not torch.cuda.is_available():
        raise NotImplementedError("there is no GPU here")
    return torch.device("cuda")


class Kernels:
    """One operation beside its reference, on tensors in the sizes of real models."""

    version = 1
    timeout = 600
    param_names = ("operation / reference", "workload")
    params: ClassVar[Sequence[Any]] = (
        OPERATIONS[:1] if SHORT else OPERATIONS,
        ["gpt2"] if SHORT else ["llama-3.2-1b", "gpt2", "5000-small"],
    )

    def setup(self, operation: str, workload: str) -> None:
        cuda = device()
        with skipped_where_missing():
            from rdo_harness.gpu import quantize, rate
            from rdo_harness.gpu.timing import copy_bandwidth, measure

            generator = torch.Generator(device=cuda).manual_seed(0)
            weights = [0.05 * torch.randn(n, device=cuda, generator=generator) for n in rate.sizes_of(workload)]
            found = [*rate.operations(weights), *quantize.operations(weights)]
        chosen = [one for one in found if f"{one.name} / {one.reference_name}" == operation]
        if not chosen:
            raise NotImplementedError(f"not measured here: {operation}")
        (self.timing,) = measure(chosen, weights, copy_bandwidth(cuda, 1 << 28), REPEATS)

    @figure("ms")
    def track_milliseconds(self, operation: str, workload: str) -> float:
        return self.timing.milliseconds

    @figure("ours / reference")
    def track_ratio(self, operation: str, workload: str) -> float:
        return self.timing.ratio

    @figure("% of the measured copy bandwidth")
    def track_missing_bandwidth(self, operation: str, workload: str) -> float:
        return 100 * (1 - self.timing.share)

    @figure("bytes a weight")
    def track_memory(self, operation: str, workload: str) -> float:
        extra = self.timing.extra_bytes
        return float("nan") if extra is None else extra / self.timing.weights


class Decoding:
    """Symbols of long streams into bfloat16 weights."""

    version = 1
    timeout = 600
    param_names = ("decoder",)
    params: ClassVar[Sequence[Any]] = (
        ["rANS"] if SHORT else ["rANS", "rANS, the launch", "Exp-Golomb", "Exp-Golomb, the launch"],
    )

    def setup(self, decoder: str) -> None:
        cuda = device()
        with skipped_where_missing():
            from rdo_harness.gpu import decode
            from rdo_harness.gpu.timing import copy_bandwidth, median_milliseconds

            symbols = 1 << (24 if SHORT else 30)
            found = decode.measure(cuda, copy_bandwidth(cuda, 1 << 28), REPEATS, median_milliseconds, symbols)
        (self.timing,) = [one for one in found if one.operation == decoder]

    @figure("ns a symbol")
    def track_nanoseconds(self, decoder: str) -> float:
        return 1e6 * self.timing.milliseconds / self.timing.symbols

    @figure("% of the measured copy bandwidth")
    def track_missing_bandwidth(self, decoder: str) -> float:
        return 100 * (1 - self.timing.share)
