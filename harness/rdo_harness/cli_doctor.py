"""The command ``rdo doctor``: what is installed here, and what of it works."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rdo_harness.cli_options import Commands, print_json

_PACKAGES = ("backslash-rdo", "torch", "triton", "numpy", "numba", "safetensors", "google-crc32c", "transformers")
_EXTRAS = ("accelerate", "peft", "pytorch-lightning", "trl", "datasets", "lm-eval", "compressed-tensors", "gguf")


@dataclass(frozen=True)
class Check:
    """Something that was tried.

    Attributes:
        state: ``"works"``, ``"absent"`` (not installed or no such device, which may be as intended) or ``"broken"``.
        detail: what was found, or what went wrong.
    """

    name: str
    state: str
    detail: str


def add_command(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="say which versions and devices are here, and what works",
        description="Try the parts that depend on this machine, and print versions and devices: what a report of a "
        "problem should contain. Nothing is downloaded or changed. Exits 1 if something is broken.",
        epilog="examples:\n  rdo doctor\n  rdo doctor --json > doctor.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    versions = {name: _version(name) for name in (*_PACKAGES, *_EXTRAS)}
    system = {"python": sys.version.split()[0], "platform": platform.platform(), "machine": platform.machine()}
    checks = [_tried(name, check) for name, check in _CHECKS.items()]
    broken = [check for check in checks if check.state == "broken"]
    if arguments.json:
        rows = [asdict(check) for check in checks]
        print_json({"system": system, "versions": versions, "checks": rows, "healthy": not broken})
        return 1 if broken else 0
    for name, value in (system | versions).items():
        print(f"{name:18} {value or 'not installed'}")
    print()
    for check in checks:
        print(f"{check.name:18} {check.state:7} {check.detail}")
    print(f"\n{len(broken)} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tried(name: str, check: Callable[[], str | None]) -> Check:
    try:
        detail = check()
    except Exception as error:  # whatever it is, it is what we are asked to report
        return Check(name, "broken", f"{type(error).__name__}: {error}")
    return Check(name, "absent", "not here") if detail is None else Check(name, "works", detail)


def _cpu_kernels() -> str:
    import torch

    scale = _laplace_scale("cpu")
    if abs(scale - 0.5) > 1e-6:
        raise ArithmeticError(f"the mean of |w| should be 0.5, and was found to be {scale}")
    return f"compiled loops, {torch.get_num_threads()} threads"


def _laplace_scale(device: str) -> float:
    """The mean absolute value of weights from -1 to 1, by the kernels of this device."""
    import torch

    import rdo

    weights = torch.linspace(-1, 1, 1 << 16, dtype=torch.float64).to(device, torch.float32)
    constraint = rdo.RateConstraint([("weights", weights)], "laplace", lam=0.0)
    scale = float(constraint.fit()[0])
    constraint.surrogate_rate()
    return scale - 0.5 / ((1 << 16) - 1)


def _training() -> str:
    import torch

    import rdo

    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = rdo.attach(optimizer, model, lam=0.1, verbose=False)
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    report = handle.rate()
    return f"one step, {report.surrogate_bits_per_parameter:.2f} bits per parameter above the mode"


def _round_trip() -> str:
    import tempfile
    from pathlib import Path

    import torch

    import rdo

    weights = {"w": torch.randn(64, 64)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.rdo"
        info = rdo.save_compressed(weights, path)
        expected = rdo.UniformQuantizer().quantize(weights["w"]).dequantize()
        if not torch.equal(rdo.load_compressed(path)["w"], expected):
            raise ArithmeticError("a file does not decode to what was written")
    return f"written, read back and compared, {info.bits_per_parameter:.2f} bits per parameter"


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    if abs(_laplace_scale("cuda") - 0.5) > 1e-6:
        raise ArithmeticError("the sums of a GPU differ from those of the CPU")
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _triton() -> str | None:
    return None if importlib.util.find_spec("triton") is None else f"triton {_version('triton')}"


def _distributed() -> str | None:
    import torch.distributed

    if not torch.distributed.is_available():
        return None
    backends = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    return ", ".join(name for name, there in backends.items() if there) or None


def _transformers() -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return None
    import rdo.integrations.transformers  # noqa: F401

    return "from_pretrained loads compressed folders"


_CHECKS: dict[str, Callable[[], str | None]] = {
    "CPU kernels": _cpu_kernels,
    "training step": _training,
    "compressed file": _round_trip,
    "triton": _triton,
    "GPU kernels": _gpu,
    "torch.distributed": _distributed,
    "transformers": _transformers,
}
