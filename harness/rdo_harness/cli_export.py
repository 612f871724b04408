"""The command ``rdo export``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rdo_harness.cli_options import Commands, print_json
from rdo_harness.tables import human_bytes

if TYPE_CHECKING:
    from rdo.integrations.exported import Exported

FORMATS = ("compressed-tensors", "gguf")

_DESCRIPTION = """\
Write a compressed model folder in a format that other runtimes run. Weights keep their levels: nothing is quantised
again, and a tensor with more levels than the format holds is refused. Entropy coding is lost, so the files are larger.
`rdo decompress` writes plain safetensors.

compressed-tensors  a folder for vLLM and transformers: linear layers as integers of 4 bits if all their symbols fit,
                    else of 8, with a scale for each row; the rest as plain numbers. Needs the extra
                    `compressed-tensors`.
gguf                a file for llama.cpp: Llama models, SmolLM2 among them. Each matrix as Q4_0, Q5_0 or Q8_0, the first
                    that holds its symbols, its step as every block's scale; the rest as plain numbers. Needs the extra
                    `gguf`."""
_EXAMPLES = """\
examples:
  rdo export llama-rdo/ llama-int4/ --format compressed-tensors
  rdo export smollm2-rdo/ smollm2.gguf --format gguf
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``, which takes the parsed arguments and returns an exit code."""
    parser = commands.add_parser(
        "export",
        help="write a compressed model folder in a format of other runtimes",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="compressed model folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, or for gguf a file")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--allow-plain",
        action="store_true",
        help="store tensors with too many levels as plain numbers instead of refusing",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_export)


def _export(arguments: argparse.Namespace) -> int:
    from rdo_harness.model_files import compressed_file_in

    source, out = arguments.source, arguments.out
    compressed = compressed_file_in(source)
    exported = _exporter(arguments, compressed)(source, out, allow_plain=arguments.allow_plain)
    compressed_bytes = compressed.stat().st_size
    if arguments.json:
        return print_json(
            {
                "file": str(exported.file),
                "file_bytes": exported.file_bytes,
                "compressed_bytes": compressed_bytes,
                "quantised": exported.quantised,
                "plain": exported.plain,
                "largest_change": exported.largest_change,
            }
        )
    _print(exported, compressed_bytes)
    return 0


def _exporter(arguments: argparse.Namespace, compressed: Path) -> Callable[..., Exported]:
    """What writes the format, once it is sure that the output may be written."""
    from rdo.errors import ConfigError
    from rdo_harness.model_files import check_output

    if arguments.format == "gguf":
        if arguments.out.suffix != ".gguf":
            raise ConfigError(f"{arguments.out}: loaders know a GGUF file by its name; give one that ends in .gguf")
        check_output(compressed, arguments.out, arguments.force)
        from rdo.integrations import gguf

        return gguf.export
    check_output(arguments.source, arguments.out, arguments.force)
    from rdo.integrations import compressed_tensors

    return compressed_tensors.export


def _print(exported: Exported, compressed_bytes: int) -> None:
    print(
        f"{exported.file}: {human_bytes(exported.file_bytes)} from {human_bytes(compressed_bytes)} in compressed form"
    )
    for bits, count in sorted(Counter(exported.quantised.values()).items()):
        print(f"{count:,} tensors as integers of {bits} bits")
    for name, reason in exported.plain.items():
        print(f"{name}: plain numbers ({reason})")
    if exported.largest_change:
        print(
            f"scales rounded to the format's data type change a weight by up to {exported.largest_change:.2g} of itself"
        )
    else:
        print("every weight is the decoded one, to the bit of its scale")
