"""The tutorials do what they say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.documents import ROOT, run_document

FOLDER = ROOT / "docs/tutorials"
IN_A_CLONE = ("report", "regressions")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the project, where commits have an author and asv finds no machines of this user's."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(tmp_path / "clone")], check=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{key}_NAME", "reader")
        monkeypatch.setenv(f"{key}_EMAIL", "reader@example.org")
    return tmp_path / "clone"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in FOLDER.glob("*.md") if path.stem not in ("index", *IN_A_CLONE))
)
def test_a_tutorial(name: str, registries: None, tmp_path: Path) -> None:
    run_document(f"docs/tutorials/{name}.md", tmp_path)


@pytest.mark.parametrize("name", IN_A_CLONE)
def test_a_tutorial_in_a_clone(name: str, clone: Path) -> None:
    run_document(f"docs/tutorials/{name}.md", clone)
