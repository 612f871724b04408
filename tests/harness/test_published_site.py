"""Which commit made decoding slower? The published site must say so, from records as `asv_tools.record` writes them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asv_tools import record, trends
from asv_tools.figures import ROOT, Figure, every

DECODE, FILE = "coders.AgainstPeers.track_decode", "files.Files.track_bytes"
COMMITS, SLOWED, FATTENED = 14, 6, 9
"""In all, and at which one decoding becomes slower and files become larger."""
MACHINE = {"machine": "made-up", "os": "", "arch": "", "cpu": "", "num_cpu": "", "ram": ""}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def value(figure: Figure, commit: int, noise: random.Random) -> float:
    """Decoding times scatter by 3 % and become 1.3 times as long for rANS; its files grow by 0.3 %."""
    ours = figure.settings[0] == "rans"
    if figure.benchmark == DECODE:
        return 0.5 * noise.lognormvariate(0, 0.03) * (1.3 if ours and commit >= SLOWED else 1.0)
    return 100_300 if ours and commit >= FATTENED else 100_000


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commits of a repository with our asv.conf.json, each of them on record."""
    shutil.copy(ROOT / "asv.conf.json", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results" / "asv")
    machine = record.RESULTS / MACHINE["machine"] / "machine.json"
    machine.parent.mkdir(parents=True)
    machine.write_text(json.dumps({**MACHINE, "version": 1}))
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    figures = [figure for figure in every() if figure.benchmark in (DECODE, FILE)]
    noise, made = random.Random(0), []
    known = record.known_benchmarks()
    for number in range(COMMITS):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", f"Change {number}")
        made.append(git(tmp_path, "rev-parse", "HEAD"))
        values = {figure: value(figure, number, noise) for figure in figures}
        record.save(MACHINE, made[-1], 1_700_000_000_000 + 60_000 * number, values, known)
    return made


def test_the_site_names_the_commit_that_made_decoding_slower(tmp_path: Path, commits: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "asv", "publish"], cwd=tmp_path, check=True, capture_output=True)
    site = tmp_path / ".asv" / "html"
    hashes = json.loads((site / "index.json").read_text())["revision_to_hash"]
    regressions = json.loads((site / "regressions.json").read_text())["regressions"]
    found = {
        name: [(before, commits.index(hashes[str(after)])) for before, after, _, _ in steps]
        for name, *_, steps in regressions
    }
    assert found == {
        f"{DECODE}('rans', 'zstd')": [(None, SLOWED)],  # None: no commit between the two lacks a record
        f"{DECODE}('rans', 'constriction')": [(None, SLOWED)],
        f"{FILE}('rans')": [(None, FATTENED)],
    }
    (graph,) = [json.loads(path.read_text()) for path in site.glob(f"graphs/**/machine-made-up/**/{DECODE}.json")]
    assert [hashes[str(revision)] for revision, _ in graph] == commits


def test_trend_figures_are_drawn_over_the_commits(
    tmp_path: Path, commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trends, "ROOT", tmp_path)
    monkeypatch.setattr(trends, "RESULTS", tmp_path / "results" / "asv")
    monkeypatch.setattr(trends, "FIGURES", tmp_path)
    recorded = trends.values(MACHINE["machine"], DECODE)
    assert list(recorded) == commits
    assert recorded[commits[-1]]["rans", "zstd"] > 1.2 * recorded[commits[0]]["rans", "zstd"]
    drawn = [trends.draw(trend, MACHINE["machine"]) for trend in trends.TRENDS]
    found = [path.name for path in drawn if path and path.read_bytes().startswith(b"\x89PNG")]
    assert found == ["asv-decode.png", "asv-files.png"]  # there are no records of the others
