"""The commands ``rdo peers``: install, list and check the libraries that ours is compared with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rdo.errors import RdoError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``peers`` and what it can do."""
    parser = commands.add_parser(
        "peers",
        help="install, list and check the libraries that suites compare with",
        description="Libraries such as llmcompressor (GPTQ, AWQ, SparseGPT, Wanda) want versions of their own, so each "
        "has an environment of its own in the data cache (RDO_CACHE/peers).",
        epilog="examples:\n  rdo peers list\n  rdo peers install gptq hqq\n  rdo peers check gptq\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="which peers there are, and which are installed")
    listing.set_defaults(func=_list)
    install = actions.add_parser("install", help="build the environments of peers; takes minutes and about 1 GB each")
    install.add_argument("names", nargs="+", metavar="NAME", help="a peer of `rdo peers list`")
    install.set_defaults(func=_install)
    check = actions.add_parser(
        "check",
        help="run peers on tiny models and check that they did what they were asked for",
        description="Runs peers on a tiny BERT, GPT-2 and Llama and checks what comes back: coverage, sparsity, number "
        "of levels, exact symbols, and that the file decodes to a whole model.",
    )
    check.add_argument("names", nargs="+", metavar="NAME", help="a peer of `rdo peers list`")
    check.add_argument(
        "--out", type=Path, default=Path("rdo-results"), metavar="DIR", help="where results go (default: %(default)s)"
    )
    check.set_defaults(func=_check)


def _list(arguments: argparse.Namespace) -> int:
    from rdo_harness.peers.catalogue import PEERS

    rows = [("peer", "library", "state", "where")]
    for name, peer in sorted(PEERS.items()):
        environment = peer.environment()
        version = environment.versions().get(peer.package, "")
        rows.append((name, f"{peer.package} {version}".strip(), environment.state(), str(environment.folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from rdo_harness.peers.catalogue import peer

    failed = 0
    for library in dict.fromkeys(peer(name).library for name in arguments.names):
        chosen = next(peer(name) for name in arguments.names if peer(name).library == library)
        try:
            chosen.environment().install(_tell)
        except RdoError as error:
            failed += 1
            print(f"rdo: error: {error}", file=sys.stderr)
    return 1 if failed else 0


def _check(arguments: argparse.Namespace) -> int:
    from rdo_harness.peers.catalogue import peer
    from rdo_harness.peers.check import check, rows_path, write_table

    rows = [row for name in arguments.names for row in check(peer(name), arguments.out, _tell)]
    print(f"written: {rows_path(arguments.out)}, {write_table(arguments.out)}")
    failed = sum("error" in row for row in rows)
    if failed:
        print(f"rdo: error: {failed} of {len(rows)} checks failed", file=sys.stderr)
    return 1 if failed else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
