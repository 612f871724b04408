"""Damaged and hostile files: a typed error, never wrong data, never memory that the file does not justify."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdo.checkpoint import (
    default_output_limit,
    inspect_compressed,
    load_compressed,
    save_compressed,
)
from rdo.coders import CODERS
from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError, UnsupportedVersionError
from rdo.quantizers import RelativeQuantizer
from tests.sealing import Edit, forged, join, split, with_stream


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weight = torch.randn(20, 64)
    state = {
        "w": weight,
        "tied": weight,
        "v": torch.randn(9, 13).bfloat16(),
        "bias": torch.randn(7),
        "ids": torch.arange(5),
        "flag": torch.tensor(True),
    }
    save_compressed(state, tmp_path / "good.rdo", quantizer=RelativeQuantizer(ratio=0.3, granularity="row"))
    return tmp_path / "good.rdo"


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_a_forged_file_without_edits_is_good(good: Path) -> None:
    assert same(load_compressed(forged(good, lambda header, manifest: None)), load_compressed(good))


def test_truncation_anywhere_is_detected(good: Path) -> None:
    content, broken = good.read_bytes(), good.with_name("broken.rdo")
    points = {0, 1, 7, 8, 9, len(content) - 1, *random.Random(0).sample(range(len(content)), 60)}
    for point in sorted(points):
        broken.write_bytes(content[:point])
        with pytest.raises(CorruptCheckpointError, match=r"broken\.rdo"):
            load_compressed(broken)
    broken.write_bytes(content + b"\0")
    with pytest.raises(CorruptCheckpointError):
        load_compressed(broken)


def test_a_changed_byte_anywhere_gives_an_error_or_the_right_data(good: Path) -> None:
    content, broken, expected = good.read_bytes(), good.with_name("broken.rdo"), load_compressed(good)
    chance = random.Random(1)
    header = 8 + int.from_bytes(content[:8], "little")
    points = [*range(8), *chance.sample(range(8, header), 500), *chance.sample(range(header, len(content)), 200)]
    harmless = 0
    for point in points:
        changed = bytearray(content)
        changed[point] = chance.choice([changed[point] ^ (1 << chance.randrange(8)), chance.randrange(256)])
        broken.write_bytes(changed)
        try:
            loaded = load_compressed(broken)
        except CheckpointError:
            continue
        assert same(loaded, expected), f"byte {point} from {content[point]} to {changed[point]}"
        harmless += bytes(changed) != content
    assert harmless < 20


def test_damage_names_the_tensor(good: Path) -> None:
    info = inspect_compressed(good)
    content = bytearray(good.read_bytes())
    content[-40] ^= 1
    broken = good.with_name("broken.rdo")
    broken.write_bytes(content)
    assert inspect_compressed(broken) == info, "inspecting reads no data"
    with pytest.raises(CorruptCheckpointError, match=r"broken\.rdo: tensor 'v': wrong checksum of segment 0"):
        load_compressed(broken)


def _row(name: str, index: int, value: Any) -> Edit:
    def edit(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["tensors"][name][index] = value

    return edit


def _manifest(key: str, value: Any) -> Edit:
    return lambda header, manifest: manifest.update({key: value})


def _group(key: str, value: Any) -> Edit:
    return lambda header, manifest: manifest["groups"][0].update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_manifest("format", "other"), "format"),
        (_manifest("version", True), "version"),
        (_manifest("version", 0), "version"),
        (_manifest("writer", 3), "writer"),
        (_manifest("groups", {}), "groups"),
        (_manifest("groups", [3]), "group 0"),
        (_manifest("tensors", []), "tensors"),
        (_group("kind", "coded2"), "coded2"),
        (_group("dtype", "float99"), "float99"),
        (_group("dtype", ["float32"]), "float32"),
        (_group("dtype", "int8"), "int8"),
        (_group("coder", "rans"), "coder"),
        (_group("coder", {"name": "rans", "surprise": 1}), "'w'"),
        (_group("quantizer", None), "quantizer"),
        (_row("w", 0, 99), "'w'.*group"),
        (_row("w", 0, -1), "'w'.*group"),
        (_row("w", 0, 2), "'w'"),
        (_row("w", 1, [20, -64]), "'w'.*size"),
        (_row("w", 1, [20, 64.0]), "'w'.*size"),
        (_row("w", 1, [0, 64]), "'w'.*empty"),
        (_row("w", 1, [2**62, 2**62]), "'w'.*large"),
        (_row("w", 1, [1] * 65), "'w'.*large"),
        (_row("w", 1, [10, 64]), "'w'"),
        (_row("w", 1, [40, 64]), "'w'"),
        (_row("w", 2, 0), "'w'.*steps"),
        (_row("w", 2, 7), "'w'.*steps"),
        (_row("w", 2, 10), "'w'.*checksum"),
        (_row("w", 3, 10**6), "'w'.*1000088 bytes or more"),
        (_row("w", 3, 2**70), "'w'"),
        (_row("w", 3, 0), "'w'.*checksum"),
        (_row("w", 4, 11), "'w'.*segments of 2\\^11"),
        (_row("w", 4, 31), "'w'.*segments of 2\\^31"),
        (_row("w", 5, 1), "'w'.*checksum"),
        (_row("w", 5, 2**32), "'w'.*checksum"),
        (_row("bias", 1, [7, 1]), "bias"),
        (_row("bias", 1, [8]), "bias"),
        (lambda header, manifest: manifest["tensors"].update(w=[0]), "'w'"),
        (lambda header, manifest: manifest["tensors"].update(tied="tied"), "'tied'"),
        (lambda header, manifest: manifest["tensors"].update(tied="absent"), "absent"),
        (lambda header, manifest: manifest["tensors"].pop("bias"), "bias"),
        (lambda header, manifest: manifest["tensors"].update(extra=manifest["tensors"]["bias"]), "extra"),
        (lambda header, manifest: header["bias"].update(dtype="I32"), "bias"),
        (lambda header, manifest: header["w::stream"].update(dtype="I8"), "w::stream"),
        (lambda header, manifest: header["::raw_crc32c"].update(dtype="I32"), "::raw_crc32c"),
        (lambda header, manifest: header.update({"::more": header["::raw_crc32c"]}), "overlap|::more|complete"),
    ],
)
def test_contradictions_are_detected(good: Path, edit: Edit, message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        load_compressed(forged(good, edit))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{",
        '{"a":1,"a":2}',
        "[" * 100_000,
        '{"format":"rdo-checkpoint","version":1e0}',
        "NaN",
        '"\\ud800"',
    ],
)
def test_a_manifest_that_is_no_manifest(good: Path, text: str) -> None:
    header, data = split(good)
    header["__metadata__"] = {"rdo": text}
    with pytest.raises(CorruptCheckpointError):
        load_compressed(join(good, header, data))


@pytest.mark.parametrize("steps", [float("nan"), float("inf"), 0.0, -1.0])
def test_impossible_steps_are_refused(good: Path, steps: float) -> None:
    table_bytes = next(tensor.table_bytes for tensor in inspect_compressed(good).tensors if tensor.name == "w")

    def change(stream: bytearray) -> None:
        stream[table_bytes + 8 : table_bytes + 12] = struct.pack("<f", steps)

    path = with_stream(good, "w", change)
    with pytest.raises(CorruptCheckpointError, match=r"'w'.*step"):
        load_compressed(path)


def test_newer_versions_and_missing_coders_are_told_apart(good: Path) -> None:
    with pytest.raises(UnsupportedVersionError, match=r"version 5.*upgrade"):
        load_compressed(forged(good, _manifest("version", 5)))
    with pytest.raises(CheckpointError, match=r"'w' needs a coder that is not installed.*zzz") as caught:
        load_compressed(forged(good, _group("coder", {"name": "zzz"})))
    assert not isinstance(caught.value, CorruptCheckpointError)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="rdo compress"):
        load_compressed(tmp_path / "plain.safetensors")
    for name, content in (("model.bin", b"anything"), ("model", b"PK\x03\x04 zip"), ("m", b"\x80\x02}q\x00.....")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"pickle.*safetensors"):
            load_compressed(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_compressed(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        load_compressed(tmp_path)


def test_expansion_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "zeros.rdo"
    info = save_compressed({"zeros": torch.zeros(1000, 1000), "bias": torch.ones(1000)}, path)
    assert info.file_bytes < 2**20
    assert default_output_limit(info.file_bytes) == 2**30
    load_compressed(path)
    for dtype, needed in ((None, 4_004_000), (torch.float64, 8_008_000), (torch.bfloat16, 2_002_000)):
        load_compressed(path, dtype=dtype, max_output_bytes=needed)
        with pytest.raises(CheckpointError, match=r"'bias' on .*max_output_bytes"):
            load_compressed(path, dtype=dtype, max_output_bytes=needed - 1)


@pytest.mark.parametrize("coder", ["fixed_length", "exp_golomb", "huffman", "rans", "context"])
def test_a_declared_size_alone_allocates_nothing(tmp_path: Path, coder: str) -> None:
    assert coder in CODERS.names()
    save_compressed({"w": torch.randn(8, 64, generator=torch.Generator().manual_seed(0))}, tmp_path / "w", coder=coder)
    load_compressed(tmp_path / "w")
    tracemalloc.start()
    for size in ([2**31, 2**20], [2**61]):
        with pytest.raises(CorruptCheckpointError, match="bytes or more"):
            load_compressed(forged(tmp_path / "w", _row("w", 1, size)))

    def huge(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["tensors"]["w"][1], manifest["tensors"]["w"][4] = [2**31], 30

    with pytest.raises(CheckpointError, match="limit"):
        load_compressed(forged(tmp_path / "w", huge))
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        load_compressed(forged(tmp_path / "w", huge), max_output_bytes=2**34)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    with pytest.raises(CorruptCheckpointError, match="'w'"):
        load_compressed(forged(tmp_path / "w", _row("w", 1, [8, 65])))


@pytest.mark.parametrize("coder", ["fixed_length", "exp_golomb", "huffman", "rans", "context"])
def test_a_forged_stream_gives_an_error_or_symbols(tmp_path: Path, coder: str) -> None:
    """With a correct checksum only the coder stands between the bytes and the memory."""
    path, chance = tmp_path / "w", random.Random(2)
    save_compressed({"w": torch.randn(9, 64, generator=torch.Generator().manual_seed(0))}, path, coder=coder)
    table_bytes, length = inspect_compressed(path).table_bytes, len(split(path)[1])
    head = table_bytes + 4 + 8
    for position in [*range(min(table_bytes, 40)), *range(head - 8, head - 4), *chance.sample(range(head, length), 60)]:

        def change(stream: bytearray, position: int = position) -> None:
            stream[position] = chance.randrange(256)

        with contextlib.suppress(CorruptCheckpointError):
            assert load_compressed(with_stream(path, "w", change))["w"].shape == (9, 64)
