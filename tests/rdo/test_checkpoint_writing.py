"""What cannot be saved is refused, and whatever goes wrong, the old file stays and nothing is left lying about."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rdo import files
from rdo.checkpoint import load_compressed, open_compressed, save_compressed
from rdo.errors import CheckpointError, ConfigError, NonFiniteWeightsError, SymbolOverflowError, UnknownNameError
from rdo.quantizers import UniformQuantizer


def normal(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"w": torch.empty(3, 3, device="meta")}, ConfigError, "w: .*meta"),
        ({"w": torch.eye(3).to_sparse()}, ConfigError, "w: .*dense"),
        ({"w": torch.zeros(3, dtype=torch.complex64)}, ConfigError, "w: .*complex64"),
        ({"w": None}, ConfigError, "'w': .*NoneType"),
        ({3: torch.ones(3)}, ConfigError, "3: "),
        ({"\ud800": torch.ones(3)}, ConfigError, "Unicode"),
        ({"fine": torch.ones(3), "w": torch.full((2, 2), float("nan"))}, NonFiniteWeightsError, "w: 4 of 4"),
        ({"w": torch.full((2, 2), 1e30)}, SymbolOverflowError, "w: "),
        ({"w": torch.full((2, 2), 65504.0, dtype=torch.float16)}, SymbolOverflowError, "w: .*float16"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(
    tmp_path: Path, state: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    path = tmp_path / "model.rdo"
    path.write_text("old")
    step = 1000.0 if "float16" in message else 2**-8
    with pytest.raises(error, match=message):
        save_compressed(state, path, quantizer=UniformQuantizer(step=step))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.rdo"]


def test_wrong_choices_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="huffman"):
        save_compressed({}, tmp_path / "x", coder="hufman")
    with pytest.raises(ConfigError, match="ids"):
        save_compressed({"ids": torch.ones(2, 2, dtype=torch.int64)}, tmp_path / "x", compressible=lambda *_: True)
    with pytest.raises(CheckpointError, match="regular file"):
        save_compressed({}, tmp_path)
    with pytest.raises(FileNotFoundError):
        save_compressed({}, tmp_path / "absent" / "x")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk full", "denied", "interrupt"],
)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[BaseException],
    function: str,
) -> None:
    path = tmp_path / "model.rdo"
    save_compressed({"w": normal(9, 9)}, path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(files.os, function, fail)
        with pytest.raises(expected) as caught:
            save_compressed({"w": normal(90, 90)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.rdo"]
    if expected is CheckpointError:
        needed = save_compressed({"w": normal(90, 90)}, path).file_bytes
        assert f"{needed:,} bytes" in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, mode: str) -> Any:
        path = Path(path)  # type: ignore[assignment]
        path.touch()  # type: ignore[attr-defined]
        return open("/dev/full", "wb")

    monkeypatch.setattr(files, "open", full, raising=False)
    with pytest.raises(CheckpointError, match="No space left"):
        save_compressed({"w": normal(300, 300)}, tmp_path / "model.rdo")
    assert not os.listdir(tmp_path)


def test_an_interrupt_while_encoding_writes_nothing(tmp_path: Path) -> None:
    begun: list[str] = []

    def interrupted(name: str, tensor: Tensor) -> bool:
        begun.append(name)
        if name == "1":
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        save_compressed({f"{i}": normal(40, 40) for i in range(200)}, tmp_path / "x", compressible=interrupted)
    assert len(begun) < 200
    assert not os.listdir(tmp_path)


def test_a_symbolic_link_is_followed_and_permissions_are_ordinary(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    save_compressed({"w": normal(3, 3)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "w" in load_compressed(tmp_path / "real")
    (tmp_path / "other").touch()
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_plain_safetensors_can_be_written_from_it(tmp_path: Path) -> None:
    weight = normal(6, 9)
    save_compressed({"w": weight, "tied": weight, "ids": torch.arange(3)}, tmp_path / "model.rdo")
    with open_compressed(tmp_path / "model.rdo") as file:
        file.write_plain(tmp_path / "model.safetensors", torch.float16)
    plain = load_file(tmp_path / "model.safetensors")
    expected = load_compressed(tmp_path / "model.rdo", dtype=torch.float16)
    assert plain.keys() == expected.keys()
    for name, tensor in expected.items():
        assert plain[name].dtype == tensor.dtype
        assert torch.equal(plain[name], tensor)
