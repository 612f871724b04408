"""Runs the examples of a document as a reader would: from the first to the last, in one folder.

| fence | what is done with it |
|---|---|
| ```` ```python ```` | run; all of a document share one namespace |
| ```` ```bash ```` | run by one bash, which stops at the first failure |
| any with `title="NAME"` | saved as NAME in the folder, and not run |
| ```` ```text ```` after one that was run | must be what it printed, numbers included |
| the same after text with "something like" in it | must be that but for numbers, commits and the width of columns |

What is in other fences is neither run nor compared.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"\b[0-9a-f]{10,40}\b|[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_RUN = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file that it is to be saved as, its text, and the prose before it."""

    language: str
    title: str
    text: str
    before: str
    line: int


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, named by its path in the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    end = 0
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match[1], match[2] or "", match[3], text[end : match.start()], line)
        end = match.end()


def run_document(document: str, folder: Path) -> dict[str, Any]:
    """Run the examples of ``document`` in ``folder``; return the namespace that they leave.

    Raises:
        AssertionError: a command failed, or something else was printed than the document says.
    """
    page = ModuleType("page")
    printed: str | None = None
    known = set(sys.modules)
    sys.modules[page.__name__] = page  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        with chdir(folder):
            for block in blocks(document):
                where = f"{document}:{block.line}"
                if block.title:
                    Path(block.title).write_text(block.text, encoding="utf-8")
                elif block.language in _RUN:
                    printed = (
                        _python(block.text, where, page) if block.language == "python" else _bash(block.text, where)
                    )
                elif block.language == "text" and printed is not None:
                    _compare(printed, block, where)
                    printed = None
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if name == page.__name__ or _is_inside(sys.modules[name], folder):
                del sys.modules[name]
    return vars(page)


def _is_inside(module: ModuleType, folder: Path) -> bool:
    return Path(getattr(module, "__file__", None) or ROOT).is_relative_to(folder)


def _python(code: str, where: str, page: ModuleType) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, where, "exec"), vars(page))
    return printed.getvalue()


def _bash(script: str, where: str) -> str:
    """What a script prints, errors included; ``rdo``, ``python`` and ``asv`` are those that the tests run with."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "COLUMNS": "120",
    }
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'rdo() {{ python -m rdo_harness.cli "$@"; }}\n{script}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=900,
    )
    assert run.returncode == 0, f"{where} exits with {run.returncode}:\n{run.stdout}"
    return run.stdout


def _compare(printed: str, block: Block, where: str) -> None:
    roughly = "something like" in block.before.lower()
    expected, found = (_without_numbers(text) if roughly else _stripped(text) for text in (block.text, printed))
    assert found == expected, f"{where} says\n{block.text}\nand this was printed:\n{printed}"


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _without_numbers(text: str) -> list[str]:
    """Lines without numbers, rules, and the blanks that align columns."""
    lines = (_NUMBER.sub("#", line) for line in _stripped(text))
    return [re.sub(r"[ -]+|[─━]+", " ", line).strip() for line in lines]
