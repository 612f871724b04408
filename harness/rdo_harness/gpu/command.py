"""The command ``python -m rdo_harness.gpu``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from rdo.errors import ConfigError
from rdo_harness import kernel_checks
from rdo_harness.gpu import decode, quantize, rate
from rdo_harness.gpu.history import add_rows
from rdo_harness.gpu.timing import Timing, copy_bandwidth, measure, median_milliseconds
from rdo_harness.resources import provenance
from rdo_harness.tables import human_bytes


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
    parser.add_argument(
        "--symbols",
        type=lambda text: int(float(text)),
        metavar="N",
        help="symbols to decode (default: 2^30; on a CPU 2^24)",
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--history", type=Path, default=Path("results/asv"), metavar="DIR", help="of asv, default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not arguments.cpu and not torch.cuda.is_available():
        parser.error("no GPU was found; --cpu runs on the CPU")
    chosen = arguments.workloads or ("gpt2,5000-small" if arguments.cpu else "llama-3.2-1b,gpt2,5000-small")
    arguments.symbols = arguments.symbols or (1 << 24 if arguments.cpu else 1 << 30)
    workloads = [workload.strip() for workload in chosen.split(",")]
    try:
        for workload in workloads:
            rate.sizes_of(workload)
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
        generator = torch.Generator(device=device).manual_seed(0)
        weights = [0.05 * torch.randn(size, device=device, generator=generator) for size in rate.sizes_of(workload)]
        try:
            for operations in (rate.operations, quantize.operations):  # in turn: each holds tensors of its own
                timings += measure(operations(weights), weights, bandwidth, arguments.repeats)
        except torch.OutOfMemoryError as error:
            print(f"{workload}: the rest of it does not fit here: {error}", file=sys.stderr)
        del weights
    _print(timings)
    decoding = decode.measure(device, bandwidth, arguments.repeats, median_milliseconds, arguments.symbols)
    _print_decoding(decoding)
    path = _write(arguments.out, device, bandwidth, results, timings, decoding)
    print(f"written: {path}")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["dirty"]:
        print("not added to asv's history: the code differs from the commit")
    elif added := add_rows(content, arguments.history):
        print(f"added to asv's history: {added}")
    return 0


def _print(timings: Sequence[Timing]) -> None:
    """A table without rich, which a machine borrowed for its GPU may lack."""
    lines = [("operation", "weights", "tensors", "ms", "reference", "reference ms", "ratio", "of copy", "extra memory")]
    for t in timings:
        extra = "not measured" if t.extra_bytes is None else human_bytes(t.extra_bytes)
        measured = f"{t.milliseconds:.3f}", t.reference, f"{t.reference_milliseconds:.3f}", f"{t.ratio:.3f}"
        lines.append((t.operation, f"{t.weights:,}", f"{t.tensors:,}", *measured, f"{t.share:.0%}", extra))
    _print_table(lines, left=(0, 4))


def _print_decoding(timings: Sequence[decode.DecodeTiming]) -> None:
    lines = [("decode to bfloat16", "symbols", "segments", "bits", "ms", "G symbols/s", "copy ms", "of copy")]
    for t in timings:
        measured = f"{t.milliseconds:.3f}", f"{t.symbols_per_second / 1e9:.2f}", f"{t.copy_milliseconds:.3f}"
        lines.append((t.operation, f"{t.symbols:,}", f"{t.segments:,}", f"{t.bits:.2f}", *measured, f"{t.share:.0%}"))
    _print_table(lines, left=(0,))


def _print_table(lines: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> None:
    """Aligned columns, the first line the header; those in ``left`` are words."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print()


def _write(
    folder: Path,
    device: torch.device,
    bandwidth: float,
    checks: dict[str, str],
    timings: Sequence[Timing],
    decoding: Sequence[decode.DecodeTiming],
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
        "decoding": [{**asdict(timing), "symbols_per_second": timing.symbols_per_second} for timing in decoding],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}"
