"""The commands on files: ``rdo compress``, ``decompress``, ``inspect`` and ``fit``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo_harness.config import parse_step
from rdo_harness.tables import human_bytes, print_table

if TYPE_CHECKING:
    import torch

    from rdo.checkpoint import CheckpointInfo
    from rdo.fitting import Fit
    from rdo.quantizers import Quantizer

Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name

_PARTS = ("header", "table", "payload", "scale", "raw")


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the four commands; each sets ``func``, which takes the parsed arguments and returns an exit code."""
    compress = _add(
        commands,
        "compress",
        "quantise and entropy-code a safetensors file or a model directory",
        "Quantise the matrices of a model (2 axes or more), entropy-code them, and store the other tensors as they are. A "
        "file becomes a file, by custom *.rdo. A model directory (model.safetensors or shards with an index) becomes a "
        "directory with model.rdo and copies of whatever holds no weights.",
        "rdo compress model.safetensors model.rdo\n"
        "rdo compress model.safetensors model.rdo --step 2^-10 --dead-zone 0.1\n"
        "rdo compress bert-base/ bert-base-rdo/ --relative-step 0.3 --granularity row --coder huffman",
    )
    compress.add_argument("source", type=Path, metavar="IN", help=".safetensors file or model directory")
    compress.add_argument("out", type=Path, metavar="OUT", help="file or directory to write")
    _add_steps(compress)
    compress.add_argument(
        "--granularity", choices=("tensor", "row"), help="whose deviation --relative-step takes (default: tensor)"
    )
    compress.add_argument(
        "--dead-zone", type=float, default=0.0, metavar="D", help="widen the zero cell by D steps each way (default: 0)"
    )
    compress.add_argument("--coder", default="rans", help="see `rdo list coders` (default: %(default)s)")
    compress.add_argument("--raw-dtype", metavar="DTYPE", help="store uncoded floating-point tensors in this data type")
    compress.add_argument("--force", action="store_true", help="replace OUT if it exists")
    compress.set_defaults(func=_compress)

    decompress = _add(
        commands,
        "decompress",
        "turn a compressed checkpoint back into plain safetensors",
        "Write the decoded weights as plain safetensors that any tool reads. Tied tensors, stored once in the compressed "
        "file, are written under each of their names, so that no loader misses one.",
        "rdo decompress model.rdo model.safetensors\nrdo decompress bert-base-rdo/ bert-base-decoded/ --dtype bfloat16",
    )
    decompress.add_argument("source", type=Path, metavar="IN", help="compressed file, or directory with model.rdo")
    decompress.add_argument("out", type=Path, metavar="OUT", help=".safetensors file or directory to write")
    decompress.add_argument("--dtype", help="data type of floating-point tensors (default: that of the original)")
    decompress.add_argument(
        "--max-output-bytes",
        type=int,
        metavar="N",
        help="refuse to expand to more than this (default: 2^30, or 256 times the file where that is more)",
    )
    decompress.add_argument("--force", action="store_true", help="replace OUT if it exists")
    decompress.set_defaults(func=_decompress)


def _add(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "".join(f"  {line}\n" for line in examples.splitlines()),
        formatter_class=_Help,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, and fills those of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def _add_steps(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--step", metavar="STEP", help="quantisation step, like 2^-8 or 0.004 (default: 2^-8)")
    steps.add_argument(
        "--relative-step", type=float, metavar="R", help="step as a multiple of the root mean square of each tensor"
    )


def _quantizer(arguments: argparse.Namespace) -> Quantizer:
    from rdo.errors import ConfigError
    from rdo.quantizers import RelativeQuantizer, UniformQuantizer

    granularity, dead_zone = getattr(arguments, "granularity", None), getattr(arguments, "dead_zone", 0.0)
    if arguments.relative_step is not None:
        return RelativeQuantizer(
            ratio=arguments.relative_step, granularity=granularity or "tensor", dead_zone=dead_zone
        )
    if granularity == "row":
        raise ConfigError("--granularity row needs --relative-step: an absolute step is the same for every row")
    return UniformQuantizer(step=parse_step(arguments.step or "2^-8"), dead_zone=dead_zone)


def _dtype(name: str | None) -> torch.dtype | None:
    from rdo.checkpoint.container import DTYPES
    from rdo.errors import ConfigError

    if name is None:
        return None
    floats = {known: dtype for known, dtype in DTYPES.items() if dtype.is_floating_point}
    if name not in floats:
        raise ConfigError(f"unknown data type {name!r}; known: {', '.join(floats)}")
    return floats[name]


def _compress(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint import save_compressed
    from rdo.errors import ConfigError
    from rdo_harness.model_files import COMPRESSED, check_output, plain_tensors, write_model

    source, out = arguments.source, arguments.out
    quantizer, raw_dtype = _quantizer(arguments), _dtype(arguments.raw_dtype)
    if not source.is_dir() and out.suffix == ".safetensors":
        raise ConfigError(
            f"{out}: loaders take *.safetensors for plain weights; name it {out.with_suffix('.rdo').name}"
        )
    check_output(source, out, arguments.force)
    started = time.perf_counter()
    with plain_tensors(source) as tensors:
        plain_bytes = sum(tensor.nbytes for tensor in tensors.values())
        written: list[CheckpointInfo] = []

        def write(path: Path) -> None:
            written.append(
                save_compressed(tensors, path, quantizer=quantizer, coder=arguments.coder, raw_dtype=raw_dtype)
            )

        file = write_model(source, out, COMPRESSED, write)
    info, seconds = written[0], time.perf_counter() - started
    if arguments.json:
        return _print_json({"file": str(file), "plain_bytes": plain_bytes, "seconds": seconds, **info.to_json()})
    print(
        f"{file}: {human_bytes(info.file_bytes)} from {human_bytes(plain_bytes)} in {seconds:.1f} s; "
        f"{info.coded_bits_per_parameter:.3f} bits per coded parameter, {info.bits_per_parameter:.3f} bits per parameter "
        "with everything in the file"
    )
    return 0


def _decompress(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint import open_compressed
    from rdo_harness.model_files import PLAIN, check_output, compressed_file, write_model

    source, out, dtype = arguments.source, arguments.out, _dtype(arguments.dtype)
    check_output(source, out, arguments.force)
    started = time.perf_counter()
    with open_compressed(compressed_file(source)) as compressed:
        compressed.check_output(dtype, arguments.max_output_bytes)
        file = write_model(source, out, PLAIN, lambda path: compressed.write_plain(path, dtype))
    size, seconds = file.stat().st_size, time.perf_counter() - started
    if arguments.json:
        return _print_json({"file": str(file), "file_bytes": size, "seconds": seconds})
    print(f"{file}: {human_bytes(size)} in {seconds:.1f} s")
    return 0


def _print_json(content: dict[str, Any]) -> int:
    print(json.dumps(content, indent=2))
    return 0
