"""Repositories to try the gate and the records of asv on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from asv_tools.figures import ROOT

GATED = r"moments, 1000000|Files.*\(rans\)"
SLOWED = """
_once = moments
def moments(weights, **options):
    for _ in range(3):  # a busy machine alone may double a time
        _once(weights, **options)
    return _once(weights, **options)
"""
FATTENED = """
import dataclasses
_lean = RANS.encode
def _fat(self, symbols, row_length=1):
    stream = _lean(self, symbols, row_length)
    return dataclasses.replace(stream, table=np.concatenate([stream.table, np.zeros(8, np.uint8)]))
RANS.encode = _fat
"""


@dataclass(frozen=True)
class Repository:
    """A repository of its own."""

    folder: Path

    @classmethod
    def begun(cls, folder: Path) -> Repository:
        """One commit with the packages as they are here."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("rdo", "kernels", "harness"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in (".gitignore", "asv.conf.json"):
            shutil.copy(ROOT / name, folder)
        repository = cls(folder)
        repository.git("init", "--quiet", "--initial-branch=main")
        repository.commit("Begin")
        return repository

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, subject: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)

    def append(self, path: str, code: str) -> None:
        with (self.folder / path).open("a") as file:
            file.write(code)

    def gate(
        self, *arguments: str, only: str = r"moments, 1000000|Files.*\(rans\)"
    ) -> subprocess.CompletedProcess[str]:
        return self.tool("gate", "--only", only, *arguments)

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of asv_tools as it is in this repository."""
        sources = os.pathsep.join(str(self.folder / name) for name in (".", "kernels", "harness"))
        environment = {**os.environ, "PYTHONPATH": sources}
        command = [sys.executable, "-m", f"asv_tools.{name}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
