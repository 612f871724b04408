"""CI's comparison where the clone does not have the parent: with the figures on record in results/asv."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asv.machine import Machine

from asv_tools import gate, record
from asv_tools.commits import since
from asv_tools.figures import Figure, gated
from tests.harness.gated_repository import FATTENED, Repository

HERE = {**Machine.get_defaults(), "machine": "here", "os": "", "arch": "", "ram": ""}
ELSEWHERE = {**HERE, "machine": "elsewhere", "cpu": "another processor"}
(BITS,) = [f for f in gated() if f.label == "compression.ShortTraining.track_bits (BackSlash)"]
(RATIO,) = [f for f in gated() if f.label == "coders.AgainstPeers.track_decode (rans, zstd)"]
COMMIT = "0123456789" * 4


def know(machine: dict[str, str], results: Path) -> None:
    folder = results / machine["machine"]
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(json.dumps({**machine, "version": 1}))


def test_a_shallow_clone_is_compared_with_the_record(tmp_path: Path) -> None:
    repository = Repository.begun(tmp_path / "origin")
    know(HERE, repository.folder / "results" / "asv")
    done = repository.tool("record", "--machine", "here", "--only", r"Files.*\(rans\)", "HEAD")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = repository.git("rev-parse", "--short=10", "HEAD")
    repository.commit("Record the sizes")
    repository.append("rdo/coders/rans.py", FATTENED)
    repository.commit("Fatten the table")
    (repository.folder / "notes.txt").write_text("of no effect\n")
    repository.commit("Take notes")
    repository.git("clone", "--quiet", "--depth", "1", f"file://{repository.folder}", str(tmp_path / "clone"))

    done = Repository(tmp_path / "clone").gate()
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"against the record in results/asv ({recorded} on here): 1 figures" in done.stdout
    assert "not compared, for want of a record from this hardware: 2 figures" in done.stdout
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "files.Files.track_bytes (rans)" in failed
    assert f"Take notes, or a commit between {recorded} and it, which this clone lacks" in done.stdout

    (suspect,) = since(repository.folder, recorded)  # as --history has it in a clone with all commits
    assert suspect.endswith(" Fatten the table")


@pytest.mark.parametrize(
    ("machine", "bits", "ratio", "failing"),
    [
        (HERE, 2.06, 0.549, []),
        (HERE, 2.061, 0.549, [BITS.label]),
        (HERE, 2.06, 0.551, [RATIO.label]),
        (ELSEWHERE, 2.061, 0.551, [BITS.label]),
    ],
)
def test_limits_against_the_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machine: dict[str, str],
    bits: float,
    ratio: float,
    failing: list[str],
) -> None:
    """Trained bits and sizes are compared whatever the hardware, ratios of times only with the same."""
    now = {BITS: bits, RATIO: ratio}

    class Measured:
        def __init__(self, root: Path) -> None:
            assert root == tmp_path
            self.errors: dict[Figure, str] = {}

        def measure(self, figure: Figure) -> float:
            return now[figure]

        def restart(self) -> None:
            pass

    repository = Repository.begun(tmp_path)  # of which HEAD does not descend from the commit on record
    results = tmp_path / "results" / "asv"
    know(machine, results)
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    monkeypatch.setattr(gate, "Side", Measured)
    record.save(machine, COMMIT, 1_700_000_000_000, {BITS: 2.0, RATIO: 0.5}, record.known_benchmarks())
    code = gate.main(["--only", r"ShortTraining.*BackSlash|track_decode \(rans"])
    told = capsys.readouterr().out
    assert code == bool(failing), told
    failed = [line for line in told.splitlines() if line.startswith("FAIL")]
    assert [label for label in failing if label in "".join(failed)] == failing
    assert len(failed) == len(failing)
    assert (f"between {COMMIT[:10]} and it" in told) == bool(failing)
    assert repository.git("status", "--porcelain", "--untracked-files=no") == ""


def test_a_machine_without_a_name_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="asv machine --yes --machine lptop"):
        record.main(["--machine", "lptop", "HEAD"])
    assert not (tmp_path / "results").exists()
