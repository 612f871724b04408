"""The command ``rdo push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rdo_harness.cli_options import Commands, print_json

_DESCRIPTION = """\
Check a compressed model folder, and push it to the Hugging Face hub in one commit, with a model card (README.md) that
gives its size on the disk, its bits per parameter, and how to load it. Log in first: `hf auth login`, or HF_TOKEN."""
_EXAMPLES = """\
examples:
  rdo push smollm2-rdo/ someone/smollm2-3bit --base-model HuggingFaceTB/SmolLM2-135M-Instruct
  rdo push smollm2-rdo/ someone/smollm2-3bit --dry-run
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``, which takes the parsed arguments and returns an exit code."""
    parser = commands.add_parser(
        "push",
        help="push a compressed model folder to the Hugging Face hub",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="compressed model folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the hub; made if there is none")
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="what it was made from, for the card")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: says the bits per parameter)")
    parser.add_argument("--dry-run", action="store_true", help="print the files and the card, and push nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_push)


def _push(arguments: argparse.Namespace) -> int:
    from rdo.integrations import hub

    folder, repository = arguments.folder, arguments.repository
    if arguments.dry_run:
        files = [*hub.files_to_push(folder), hub.CARD]
        card = hub.model_card(folder, repository, arguments.base_model)
        if arguments.json:
            return print_json({"repository": repository, "files": files, "card": card})
        print("\n".join(files), "", card, sep="\n")
        return 0
    commit = hub.push(
        folder,
        repository,
        base_model=arguments.base_model,
        private=arguments.private,
        message=arguments.message,
    )
    if arguments.json:
        return print_json({"repository": repository, "commit": commit})
    print(commit)
    return 0
