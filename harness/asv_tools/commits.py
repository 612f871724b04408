"""Which commits are compared, from git."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

CODE = ("rdo", "kernels", "harness/rdo_harness", "pyproject.toml", "constraints.txt")
"""What can change a figure; the benchmarks themselves are the same for both sides."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        base: the commit before, or None if the clone does not have it.
        suspects: one line for each change of the code since the base, newest first.
    """

    base: str | None
    suspects: tuple[str, ...]


def comparison(root: Path, base: str | None = None) -> Comparison:
    """This working tree with ``base``.

    By default that is HEAD if the code was edited since, otherwise the parent of the last commit that changed the
    code, along first parents.

    Raises:
        ValueError: the base that was asked for is not in the clone.
    """
    if base is None and _edited(root):
        base = "HEAD"
    if base is None:
        last = _git(root, "log", "-1", "--first-parent", "--format=%H", "--", *CODE)
        base = f"{last}^"
        if not _exists(root, base):
            return Comparison(None, ())
    elif not _exists(root, base):
        raise ValueError(f"there is no commit {base!r} in this clone")
    commit = _git(root, "rev-parse", f"{base}^{{commit}}")
    return Comparison(commit, since(root, commit))


def since(root: Path, commit: str) -> tuple[str, ...]:
    """One line for each change of the code since a commit, newest first; one for all if the commit is missing."""
    edits = ("the edits in this working tree",) if _edited(root) else ()
    if not _exists(root, commit):
        return *edits, f"{_line(root, 'HEAD')}, or a commit between {commit[:10]} and it, which this clone lacks"
    lines = _git(root, "log", "--first-parent", "--format=%h %s", f"{commit}..HEAD", "--", *CODE)
    return *edits, *lines.splitlines()


def extracted(root: Path, commit: str) -> Path:
    """A folder with the package as it was at a commit; kept, with what is compiled in it, for the next comparison."""
    folder = root / ".asv" / "commits" / commit
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "-C", str(root), "archive", "--format=tar", commit, "rdo", "kernels", "harness"],
            capture_output=True,
            check=True,
        )
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def is_ancestor(root: Path, commit: str) -> bool:
    """Whether HEAD descends from a commit, as far as this clone can tell."""
    command = ["git", "-C", str(root), "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _edited(root: Path) -> bool:
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE))


def _line(root: Path, commit: str) -> str:
    return _git(root, "log", "-1", "--format=%h %s", commit)


def _exists(root: Path, commit: str) -> bool:
    command = ["git", "-C", str(root), "rev-parse", "--quiet", "--verify", f"{commit}^{{commit}}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
