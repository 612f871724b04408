"""The command ``rdo verify``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rdo_harness.cli_options import Commands, print_json
from rdo_harness.tables import human_bytes

_VERIFY = """\
Check every checksum of compressed checkpoints and decode all their tensors. Says which tensors are damaged; the exit
code is 1 if anything is."""
_EXAMPLES = """\
examples:
  rdo verify model.rdo
  rdo verify bert-base-rdo/ other.rdo --json
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``, which takes the parsed arguments and returns an exit code."""
    parser = commands.add_parser(
        "verify",
        help="check all of a compressed checkpoint",
        description=_VERIFY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, nargs="+", metavar="FILE", help="compressed file, or model directory")
    parser.add_argument(
        "--max-output-bytes", type=int, metavar="N", help="refuse files whose tensors would take more (see decompress)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint import inspect_compressed, verify_compressed
    from rdo_harness.model_files import compressed_file
    from rdo_harness.progress_bar import weights_bar

    files = [compressed_file(source) for source in arguments.source]
    found = []
    for file in files:
        with weights_bar(f"verifying {file.name}", inspect_compressed(file).parameters) as progress:
            found.append(verify_compressed(file, max_output_bytes=arguments.max_output_bytes, progress=progress))
    sound = all(result.sound for result in found)
    if arguments.json:
        rows = [{"file": str(file), "sound": r.sound, **asdict(r)} for file, r in zip(files, found, strict=True)]
        print_json({"files": rows})
        return 0 if sound else 1
    for file, result in zip(files, found, strict=True):
        for message in result.damaged.values():
            print(message)
        what = f"{result.tensors:,} tensors, {human_bytes(result.file_bytes)}, format version {result.version}"
        if result.whole is None:
            what += "; files of this version have no hash of the whole"
        if result.whole is False and not result.damaged:
            print(f"{file}: all tensors are sound, but the file is not what was written (wrong hash)")
        state = "sound" if result.sound else f"DAMAGED ({len(result.damaged)} tensors)"
        print(f"{file}: {state} ({what})")
    return 0 if sound else 1
