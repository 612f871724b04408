"""Environments of peers are whole or not there, and pip's own words reach the user."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from rdo.errors import UnknownNameError
from rdo_harness import cli
from rdo_harness.peers import catalogue, environments
from rdo_harness.peers.environments import Environment, PeerError


def wheel(folder: Path, name: str) -> Path:
    """A package of one empty module, which pip installs without a network."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def test_an_environment_is_built_once_and_anew_when_its_requirements_change(tmp_path: Path) -> None:
    first, second = (wheel(tmp_path, name) for name in ("rdo_first", "rdo_second"))
    environment = Environment("stand-in", f"# what it is\n{first}\n\n{second}\n")
    said: list[str] = []
    assert environment.state() == "missing"
    environment.install(said.append)
    assert environment.state() == "installed"
    assert environment.versions()["rdo_first"] == environment.versions()["rdo_second"] == "1.0"
    assert [line for line in said if "rdo_first" in line]
    before = environment.python.stat().st_ctime_ns
    environment.install(said.append)
    assert "is installed" in said[-1]
    assert environment.python.stat().st_ctime_ns == before
    changed = Environment("stand-in", f"{tmp_path}/absent-1.0-py3-none-any.whl\n")
    assert changed.state() == "outdated"
    with pytest.raises(PeerError, match=r"(?s)'stand-in' cannot be built: pip failed.*absent.*rdo peers install"):
        changed.install(said.append)
    assert changed.state() == environment.state() == "missing"


def test_what_was_killed_or_damaged_does_not_look_whole(cache: Path) -> None:
    environment = Environment("stand-in", "")
    folder = cache / "peers" / "stand-in"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("")
    assert environment.state() == "missing"
    marker = folder / "complete.json"
    marker.write_text('{"requirements": "')
    assert environment.state() == "missing"
    marker.write_text(json.dumps({"requirements": environment.digest}))
    assert environment.state() == "installed"
    (folder / "bin" / "python").unlink()
    assert environment.state() == "outdated"


def test_every_peer_has_pinned_requirements_with_torch_first() -> None:
    for peer in catalogue.PEERS.values():
        first, *rest = peer.environment().requirements.split("\n\n")
        assert first.splitlines()[-1].startswith("torch==")
        names = [line for line in "\n".join(rest).splitlines() if line and not line.startswith("#")]
        assert all("==" in line for line in names)
        assert any(line.startswith(f"{peer.package}==") for line in names)
        assert all(source.is_file() for source in peer.sources())
        assert peer.checks


def test_a_missing_peer_is_named_with_the_line_that_installs_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PeerError, match="'gptq' is missing; install it: rdo peers install gptq"):
        catalogue.peer("gptq").python()
    with pytest.raises(UnknownNameError, match="did you mean 'gptq'"):
        catalogue.peer("gtpq")
    assert cli.main(["peers", "list"]) == cli.DONE
    assert "missing" in capsys.readouterr().out
    assert cli.main(["peers", "check", "hqq"]) == cli.FAILED
    assert "rdo peers install hqq" in capsys.readouterr().err
    assert cli.main(["peers", "install", "hqqq"]) == cli.MISUSED


def test_foreign_interpreters_do_not_see_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    found = environments.clean_environment({"HF_HUB_OFFLINE": "1"})
    assert "PYTHONPATH" not in found
    assert found["HF_HUB_OFFLINE"] == "1"
