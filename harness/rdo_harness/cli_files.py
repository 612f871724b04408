"""The commands on files: ``rdo compress``, ``decompress``, and those that look into them and check them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo_harness import cli_inspect, cli_verify
from rdo_harness.cli_options import Commands, add_steps, dtype_from, print_json, quantizer_from
from rdo_harness.tables import human_bytes

if TYPE_CHECKING:
    import torch

    from rdo.checkpoint import CheckpointInfo
    from rdo.quantizers import AllocatedQuantizer, Quantizer

_COMPRESS = """\
Quantise the matrices of a model (2 axes or more), entropy-code them, and store the other tensors as they are. A file
becomes a file, by custom *.rdo. A model directory (model.safetensors, or shards with an index) becomes a directory with
model.rdo and copies of whatever holds no weights."""
_COMPRESS_EXAMPLES = """\
examples:
  rdo compress model.safetensors model.rdo
  rdo compress model.safetensors model.rdo --bits 2.0
  rdo compress model.safetensors model.rdo --step 2^-10 --dead-zone 0.1
  rdo compress bert-base/ bert-base-rdo/ --relative-step 0.3 --granularity row --coder rans,huffman
  rdo compress bert-base/ bert-base-rdo/ --lossless
  rdo compress smollm2/ smollm2-rdo/ --bits 3.0 --calibration articles.txt
  rdo compress smollm2/ smollm2-rdo/ --max-loss 1% --calibration articles.txt
"""
_DECOMPRESS = """\
Write the decoded weights as plain safetensors that any tool reads. Tied tensors, which the compressed file stores once,
are written under each of their names, so that no loader misses one."""
_DECOMPRESS_EXAMPLES = """\
examples:
  rdo decompress model.rdo model.safetensors
  rdo decompress bert-base-rdo/ bert-base-decoded/ --dtype bfloat16
"""


def add_commands(commands: Commands) -> None:
    """Add the commands; each sets ``func``, which takes the parsed arguments and returns an exit code."""
    _add_compress(commands)
    _add_decompress(commands)
    cli_inspect.add_commands(commands)
    cli_verify.add_command(commands)


def _add_compress(commands: Commands) -> None:
    parser = commands.add_parser(
        "compress",
        help="quantise and entropy-code a safetensors file or a model directory",
        description=_COMPRESS,
        epilog=_COMPRESS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help=".safetensors file or model directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="file or directory to write")
    steps = add_steps(parser)
    steps.add_argument("--lossless", action="store_true", help="keep every bit of the weights instead of quantising")
    steps.add_argument(
        "--bits",
        type=float,
        metavar="B",
        help="find the steps with which the file has at most B bits per parameter, everything in it included",
    )
    parser.add_argument(
        "--distortion",
        choices=("absolute", "relative"),
        help="the squared error that --bits makes small: of the weights, or over the mean square of their tensor "
        "(default: relative)",
    )
    steps.add_argument(
        "--max-loss",
        type=_share,
        metavar="P%",
        help="with --calibration: find the coarsest steps with which a language model's cross entropy on a quarter of "
        "the text, which is held out, is at most P %% higher",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="TEXT",
        help="with --bits or --max-loss: run the model, a causal language model or a classifier of transformers, on "
        "this UTF-8 text (for a classifier one example a line), give steps by sensitivity, and let weights make good "
        "for the rounding of those before them",
    )
    parser.add_argument(
        "--granularity", choices=("tensor", "row"), help="what --relative-step is relative to (default: tensor)"
    )
    parser.add_argument(
        "--dead-zone", type=float, default=0.0, metavar="D", help="widen the zero cell by D steps each way (default: 0)"
    )
    parser.add_argument(
        "--coder",
        metavar="NAME[,NAME]",
        help="see `rdo list coders`; of several, each tensor gets the one that takes fewest bytes (default: rans; "
        "with --calibration rans,context)",
    )
    parser.add_argument("--raw-dtype", metavar="DTYPE", help="store uncoded floating-point tensors in this data type")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_compress)


def _add_decompress(commands: Commands) -> None:
    parser = commands.add_parser(
        "decompress",
        help="turn a compressed checkpoint back into plain safetensors",
        description=_DECOMPRESS,
        epilog=_DECOMPRESS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="compressed file, or directory with model.rdo")
    parser.add_argument("out", type=Path, metavar="OUT", help=".safetensors file or directory to write")
    parser.add_argument("--dtype", help="data type of floating-point tensors (default: that of the original)")
    parser.add_argument(
        "--max-output-bytes",
        type=int,
        metavar="N",
        help="refuse to expand to more than this (default: 2^30, or 256 times the file where that is more)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_decompress)


def _share(text: str) -> float:
    """``1%`` or ``0.01``, as a number."""
    try:
        value = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 10.0:
        raise argparse.ArgumentTypeError(f"a positive share such as 1% or 0.01, got {text!r}")
    return value


def _compress(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint import save_compressed
    from rdo.checkpoint.writer import SMALLEST
    from rdo.errors import ConfigError
    from rdo_harness.model_files import COMPRESSED, check_output, plain_tensors, write_model
    from rdo_harness.progress_bar import weights_bar

    source, out = arguments.source, arguments.out
    _check_options(arguments)
    found = arguments.bits is not None or arguments.max_loss is not None or arguments.lossless
    quantizer = None if found else quantizer_from(arguments)
    coders = arguments.coder.split(",") if arguments.coder is not None else None
    raw_dtype = dtype_from(arguments.raw_dtype)
    if not source.is_dir() and out.suffix == ".safetensors":
        better = out.with_suffix(".rdo").name
        raise ConfigError(f"{out}: loaders take *.safetensors for plain weights; call it {better}")
    check_output(source, out, arguments.force)
    started = time.perf_counter()
    written: list[CheckpointInfo] = []
    with plain_tensors(source) as tensors:
        plain_bytes = sum(tensor.nbytes for tensor in tensors.values())
        options: dict[str, Any] = {"coder": coders, "raw_dtype": raw_dtype}
        stored = tensors
        if arguments.calibration is not None:
            options["coder"] = coders or SMALLEST
            stored, quantizer = _calibrated(tensors, arguments, options)
            options["compressible"] = lambda name, _: name in quantizer.names
        elif arguments.bits is not None:
            quantizer = _allocated(tensors, arguments, options)
        options |= {"quantizer": quantizer, "lossless": arguments.lossless}

        def write(path: Path) -> None:
            with weights_bar("compressing", sum(tensor.numel() for tensor in tensors.values())) as progress:
                written.append(save_compressed(stored, path, progress=progress, **options))

        file = write_model(source, out, COMPRESSED, write)
    info, seconds = written[0], time.perf_counter() - started
    if arguments.json:
        return print_json({"file": str(file), "plain_bytes": plain_bytes, "seconds": seconds, **info.to_json()})
    print(f"{file}: {human_bytes(info.file_bytes)} from {human_bytes(plain_bytes)} in {seconds:.1f} s")
    print(
        f"{info.coded_bits_per_parameter:.3f} bits per coded parameter; "
        f"{info.bits_per_parameter:.3f} bits per parameter with everything in the file"
        + (f" (--bits {arguments.bits:g})" if arguments.bits is not None else "")
    )
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    from rdo.errors import ConfigError

    if arguments.bits is None and arguments.distortion is not None:
        raise ConfigError("--distortion says what --bits makes small: give --bits, too")
    if arguments.lossless and (arguments.dead_zone or arguments.granularity is not None or arguments.coder is not None):
        raise ConfigError(
            "--lossless quantises nothing and has a coder of its own: leave --dead-zone, --granularity, --coder"
        )
    if arguments.max_loss is not None and arguments.calibration is None:
        raise ConfigError("--max-loss measures the loss on a text: give --calibration, too")
    if arguments.calibration is not None:
        if arguments.bits is None and arguments.max_loss is None:
            raise ConfigError("--calibration rounds to a size or to a loss: give --bits or --max-loss, too")
        if arguments.distortion is not None or arguments.dead_zone or arguments.granularity is not None:
            raise ConfigError(
                "--calibration measures what rounding costs: leave --distortion, --dead-zone and --granularity"
            )
        if not arguments.source.is_dir():
            raise ConfigError(f"--calibration runs the model: {arguments.source} must be its folder, with config.json")
    if arguments.bits is not None and arguments.granularity is not None:
        raise ConfigError("--granularity needs --relative-step; --bits finds one step for each tensor")


def _allocated(tensors: dict[str, torch.Tensor], arguments: argparse.Namespace, options: dict[str, Any]) -> Quantizer:
    from rdo.allocation import steps_for_bits
    from rdo_harness.progress_bar import progress_bar

    distortion, dead_zone = arguments.distortion or "relative", arguments.dead_zone
    with progress_bar() as progress:
        return steps_for_bits(
            tensors, arguments.bits, distortion=distortion, dead_zone=dead_zone, progress=progress, **options
        )


def _calibrated(
    tensors: dict[str, torch.Tensor], arguments: argparse.Namespace, options: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], AllocatedQuantizer]:
    from rdo.channel_sensitivity import tells_channels
    from rdo_harness.calibrated import CalibratedModel
    from rdo_harness.progress_bar import progress_bar

    with progress_bar() as progress:
        to_loss = arguments.max_loss is not None
        read = {"hold_out": to_loss, "channels": tells_channels(options["coder"])}
        model = CalibratedModel(arguments.source, tensors, arguments.calibration, progress, **read)
        return model.to_loss(arguments.max_loss, **options) if to_loss else model.to_size(arguments.bits, **options)


def _decompress(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint import open_compressed
    from rdo_harness.model_files import PLAIN, check_output, compressed_file, write_model

    source, out, dtype = arguments.source, arguments.out, dtype_from(arguments.dtype)
    check_output(source, out, arguments.force)
    started = time.perf_counter()
    with open_compressed(compressed_file(source), max_output_bytes=arguments.max_output_bytes) as compressed:
        compressed.check_output(dtype)
        file = write_model(source, out, PLAIN, lambda path: compressed.write_plain(path, dtype))
    size, seconds = file.stat().st_size, time.perf_counter() - started
    if arguments.json:
        return print_json({"file": str(file), "file_bytes": size, "seconds": seconds})
    print(f"{file}: {human_bytes(size)} in {seconds:.1f} s")
    return 0
