"""The commands that look into files: ``rdo inspect`` and ``rdo fit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo_harness.cli_options import Commands, add_steps, print_json, quantizer_from
from rdo_harness.tables import human_bytes, print_table

if TYPE_CHECKING:
    import torch

    from rdo.checkpoint import TensorInfo

_INSPECT = """\
List the tensors of a compressed checkpoint and account for every byte of it, from its header alone. Of plain
safetensors files and model directories it says what `rdo compress` does by default: tensors of two dimensions and more
(experts in one tensor have three) are coded, the others stored raw; what is tied to another tensor takes no room."""
_INSPECT_EXAMPLES = """\
examples:
  rdo inspect model.rdo
  rdo inspect model.safetensors --json
"""
_FIT = """\
Fit an entropy model to the matrices of a compressed or plain file, and compare the bits per weight that the law gives
at a step with the empirical entropy there, which is what the best static table reaches."""
_FIT_EXAMPLES = """\
examples:
  rdo fit model.safetensors
  rdo fit model.safetensors --per-tensor --relative-step 0.5
  rdo fit model.rdo --entropy-model laplace --json
"""


def add_commands(commands: Commands) -> None:
    """Add both commands; each sets ``func``."""
    inspect = commands.add_parser(
        "inspect",
        help="what is in a compressed or plain file, to the byte",
        description=_INSPECT,
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.set_defaults(func=_inspect)
    fit = commands.add_parser(
        "fit",
        help="fit a law to the weights of a file",
        description=_FIT,
        epilog=_FIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument(
        "--entropy-model",
        default="generalized_gaussian",
        metavar="NAME",
        help="see `rdo list entropy-models` (default: %(default)s)",
    )
    fit.add_argument("--per-tensor", action="store_true", help="also fit each tensor by itself")
    add_steps(fit)
    fit.set_defaults(func=_fit)
    for parser in (inspect, fit):
        parser.add_argument("source", type=Path, metavar="FILE", help="compressed or plain file, or model directory")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _inspect(arguments: argparse.Namespace) -> int:
    show = _inspect_compressed if _is_compressed(arguments.source) else _inspect_plain
    return show(arguments.source, arguments.json)


def _inspect_compressed(path: Path, as_json: bool) -> int:
    from rdo.checkpoint import inspect_compressed
    from rdo.checkpoint.manifest import FORMAT
    from rdo_harness.model_files import compressed_file

    info = inspect_compressed(compressed_file(path))
    if as_json:
        return print_json({"format": FORMAT, **info.to_json()})
    columns = ("tensor", "stored as", "dtype", "size", "steps", "bytes", "bits/parameter")
    print_table(columns, [_tensor_row(tensor) for tensor in info.tensors])
    parts = {
        part: getattr(info, f"{part}_bytes") for part in ("header", "table", "index", "payload", "scale", "raw", "file")
    }
    print()
    print_table(("part", "bytes", "share"), [[part, n, f"{n / info.file_bytes:.2%}"] for part, n in parts.items()])
    print(f"\n{FORMAT} version {info.version}, written by {info.writer}")
    print(
        f"{info.coded_parameters:,} of {info.parameters:,} parameters coded, "
        f"{info.coded_bits_per_parameter:.3f} bits each with table and scales; "
        f"{info.bits_per_parameter:.3f} bits per parameter over the whole file"
    )
    return 0


def _tensor_row(tensor: TensorInfo) -> list[Any]:
    if tensor.kind == "tied":
        return [tensor.name, f"tied to {tensor.tied_to}", tensor.dtype, _size(tensor.size), None, None, None]
    how = f"raw {tensor.stored_dtype}" if tensor.coder is None else str(tensor.coder.get("name"))
    steps = f"{tensor.steps:,} {tensor.channels}" if tensor.channels is not None else tensor.steps or None
    return [tensor.name, how, tensor.dtype, _size(tensor.size), steps, tensor.stored_bytes, tensor.bits_per_parameter]


def _inspect_plain(path: Path, as_json: bool) -> int:
    from rdo.checkpoint import is_compressible
    from rdo.checkpoint.container import dtype_name
    from rdo_harness.model_files import plain_tensors, weight_files

    def described(name: str, tensor: torch.Tensor) -> dict[str, Any]:
        return {"name": name, "dtype": dtype_name(tensor.dtype), "size": list(tensor.shape)}

    rows: list[dict[str, Any]] = []
    of_rank: dict[tuple[int, str], list[int]] = {}
    with plain_tensors(path) as tensors:
        for name, tensor in tensors.items():
            how = "coded" if is_compressible(name, tensor) else "raw"
            rows.append({**described(name, tensor), "bytes": tensor.nbytes, "by_default": how})
            of_rank.setdefault((tensor.ndim, how), []).append(tensor.numel())
        parameters = sum(tensor.numel() for tensor in tensors.values())
        for name, owner in _tied(path, tensors).items():
            rows.append({**described(name, tensors[owner]), "bytes": 0, "by_default": "tied", "tied_to": owner})
    file_bytes = sum(file.stat().st_size for file in weight_files(path))
    if as_json:
        totals = {"format": "safetensors", "parameters": parameters, "file_bytes": file_bytes}
        return print_json({**totals, "tensors": rows})
    columns = ("tensor", "by default", "dtype", "size", "bytes")
    print_table(columns, [_plain_row(**row) for row in rows])
    print()
    ranks = [[rank, how, len(sizes), sum(sizes)] for (rank, how), sizes in sorted(of_rank.items())]
    print_table(("dimensions", "by default", "tensors", "parameters"), ranks)
    stored = sum(len(sizes) for sizes in of_rank.values())
    print(f"\nplain safetensors: {stored:,} tensors, {parameters:,} parameters, {file_bytes:,} bytes", end=" ")
    print(f"({human_bytes(file_bytes)})")
    return 0


def _plain_row(name: str, dtype: str, size: list[int], bytes: int, by_default: str, tied_to: str = "") -> list[Any]:
    if tied_to:
        return [name, f"tied to {tied_to}", dtype, _size(size), None]
    return [name, by_default, dtype, _size(size), bytes]


def _tied(path: Path, stored: Collection[str]) -> dict[str, str]:
    """As :func:`tied_names`; a model that transformers does not know may have some that are not listed."""
    from rdo.errors import ConfigError
    from rdo_harness.model_files import tied_names

    try:
        return tied_names(path, stored)
    except ConfigError as error:
        print(f"tied tensors are not listed: {error}", file=sys.stderr)
        return {}


def _fit(arguments: argparse.Namespace) -> int:
    from rdo.entropy import entropy_model_from_config
    from rdo.fitting import fit_weights

    model, quantizer = entropy_model_from_config({"name": arguments.entropy_model}), quantizer_from(arguments)
    fits = fit_weights(_matrices(arguments.source), model, quantizer)
    shown = fits if arguments.per_tensor else fits[-1:]
    if arguments.json:
        return print_json({"entropy_model": model.config(), "fits": [asdict(fit) for fit in shown]})
    rates = ("law (bits/weight)", "entropy (bits/weight)")
    rows = [
        [
            fit.name,
            fit.weights,
            *fit.theta.values(),
            fit.sigma,
            fit.step,
            f"{fit.sparsity:.1%}",
            fit.law_bits,
            fit.entropy_bits,
        ]
        for fit in shown
    ]
    print_table(("tensor", "weights", *model.theta_names, "sigma", "step", "zeros", *rates), rows)
    return 0


def _matrices(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a file has coded, or that ``rdo compress`` would code, one at a time."""
    from rdo.checkpoint import is_compressible, open_compressed
    from rdo_harness.model_files import compressed_file, plain_tensors

    if _is_compressed(path):
        with open_compressed(compressed_file(path)) as file:
            for name, record in file.records.items():
                if record.kind != "raw":
                    yield name, file.tensor(name)
        return
    with plain_tensors(path) as tensors:
        for name, tensor in tensors.items():
            if is_compressible(name, tensor):
                yield name, tensor


def _is_compressed(path: Path) -> bool:
    from rdo.checkpoint.container import open_safetensors
    from rdo.checkpoint.manifest import KEY
    from rdo_harness.model_files import compressed_file

    if path.is_dir():
        return compressed_file(path).exists()
    with open_safetensors(path) as container:
        return KEY in container.metadata


def _size(size: Any) -> str:
    return "x".join(map(str, size)) or "scalar"
