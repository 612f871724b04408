"""Files of format versions 1 and 2, which are read for ever: parts of them, and damage, as in those of today."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdo.checkpoint import inspect_compressed, load_compressed, open_compressed, verify_compressed
from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = ["v1-rans-row", "v1-huffman", "v1-exp_golomb-rank", "v2-rans-segments", "v2-exp_golomb-segments", "v2-huffman"]
Edit = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(params=FILES)
def good(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURES / f"{request.param}.rdo", tmp_path / "good.rdo"))


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def forged(good: Path, edit: Edit, data: bytes | None = None) -> Path:
    """A file whose manifest was edited and given a correct checksum, as an attacker would."""
    header, content = split(good)
    manifest = json.loads(header["__metadata__"]["rdo"])
    edit(header, manifest)
    text = json.dumps(manifest)
    header["__metadata__"] = {"rdo": text, "rdo_crc32": f"{zlib.crc32(text.encode()):08x}"}
    return join(good.with_name("forged.rdo"), header, content if data is None else data)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_rows_are_those_of_the_whole_tensor(good: Path) -> None:
    done: list[int] = []
    whole = load_compressed(good, progress=done.append)
    with open_compressed(good) as file:
        assert sum(done) == sum(file.sizes.values()) == file.info.parameters
        for name in file.records:
            tensor, count = whole[name], len(whole[name])
            for begin, end in ((0, 0), (0, 1), (count - 1, count), (count // 3, count // 2), (0, count)):
                found = file.rows(name, begin, end)
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor[begin:end])
            with pytest.raises(ConfigError, match="rows"):
                file.rows(name, 0, count + 1)


def test_truncation_anywhere_is_detected(good: Path) -> None:
    content, broken = good.read_bytes(), good.with_name("broken.rdo")
    points = {0, 1, 7, 8, 9, len(content) - 1, *random.Random(0).sample(range(len(content)), 40)}
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
    points = [*range(8), *chance.sample(range(8, header), 250), *chance.sample(range(header, len(content)), 150)]
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
    info, expected = inspect_compressed(good), load_compressed(good)
    header, data = split(good)
    steps = header["::steps"]["data_offsets"][0]
    for entry, name in (("layer.weight::stream", "layer.weight"), ("layer.bias", "layer.bias")):
        begin, end = header[entry]["data_offsets"]
        broken = join(good.with_name("broken.rdo"), header, _flipped(data, (begin + end) // 2))
        assert inspect_compressed(broken).tensors == info.tensors, "inspecting reads no data"
        with pytest.raises(CorruptCheckpointError, match=rf"broken\.rdo: tensor '{name}': wrong checksum"):
            load_compressed(broken)
        with open_compressed(broken) as file:
            assert torch.equal(file.tensor("conv.weight"), expected["conv.weight"])
        found = verify_compressed(broken)
        assert (list(found.damaged), found.whole, found.sound) == ([name], None, False)
    broken = join(good.with_name("broken.rdo"), header, _flipped(data, steps))
    with pytest.raises(CorruptCheckpointError, match=r"tensor 'embedding\.weight': wrong checksum"):
        load_compressed(broken)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _row(name: str, index: int, value: Any) -> Edit:
    def edit(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["tensors"][name][index] = value

    return edit


def _manifest(key: str, value: Any) -> Edit:
    return lambda header, manifest: manifest.update({key: value})


W = "conv.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_manifest("format", "other"), "format"),
        (_manifest("version", 0), "version"),
        (_manifest("version", 3), "without a seal"),
        (_manifest("writer", 3), "writer"),
        (_manifest("groups", [3]), "group 0"),
        (_manifest("tensors", []), "tensors"),
        (_row(W, 0, 99), f"'{W}'.*group"),
        (_row(W, 1, [0, 64]), f"'{W}'.*empty"),
        (_row(W, 1, [2**62, 2**62]), f"'{W}'.*large"),
        (_row(W, 1, [3, 4, 5, 8]), f"'{W}'"),
        (_row(W, 1, [3, 4, 5, 6]), f"'{W}'"),
        (_row(W, 2, 0), f"'{W}'.*steps"),
        (_row(W, 2, 11), f"'{W}'.*steps"),
        (_row(W, 2, 420), "::steps"),
        (_row(W, 3, 10**6), f"'{W}'.*1000000 bytes or more"),
        (_row(W, 3, 0), f"'{W}'"),
        (_row(W, 4, 1), f"'{W}'.*checksum"),
        (_row(W, 4, 2**32), f"'{W}'.*checksum"),
        (_row("layer.bias", 1, [24, 1]), "layer.bias"),
        (_row("layer.bias", 2, 1), "'layer.bias'.*checksum"),
        (lambda header, manifest: manifest["tensors"][W].insert(4, 20), f"'{W}'.*row"),
        (lambda header, manifest: manifest["tensors"]["layer.bias"].pop(), "'layer.bias'.*row"),
        (lambda header, manifest: manifest["tensors"].update({"head.weight": "absent"}), "absent"),
        (lambda header, manifest: manifest["tensors"].pop("layer.bias"), "layer.bias"),
        (lambda header, manifest: header[f"{W}::stream"].update(dtype="I8"), f"{W}::stream"),
        (lambda header, manifest: header["::steps"].update(dtype="I32"), "::steps"),
    ],
)
@pytest.mark.parametrize("name", ["v1-rans-row", "v2-rans-segments"])
def test_contradictions_are_detected(name: str, tmp_path: Path, edit: Edit, message: str) -> None:
    good = Path(shutil.copy(FIXTURES / f"{name}.rdo", tmp_path / "good.rdo"))
    assert same(load_compressed(forged(good, lambda header, manifest: None)), load_compressed(good))
    with pytest.raises(CorruptCheckpointError, match=message):
        load_compressed(forged(good, edit))


def test_a_manifest_without_its_checksum_is_refused(good: Path) -> None:
    header, data = split(good)
    for checksum in (None, "", "00000000", header["__metadata__"]["rdo_crc32"].upper() + " "):
        changed = {"rdo": header["__metadata__"]["rdo"]} | ({} if checksum is None else {"rdo_crc32": checksum})
        with pytest.raises(CorruptCheckpointError, match="header is damaged"):
            load_compressed(join(good.with_name("broken.rdo"), {**header, "__metadata__": changed}, data))


@pytest.mark.parametrize("steps", [float("nan"), float("inf"), 0.0, -1.0])
def test_impossible_steps_are_refused(good: Path, steps: float) -> None:
    header, data = split(good)
    name = next(iter(json.loads(header["__metadata__"]["rdo"])["tensors"]))
    assert f"{name}::stream" in header, "the first steps are those of a coded tensor"
    begin, _ = header["::steps"]["data_offsets"]
    data = data[:begin] + struct.pack("<f", steps) + data[begin + 4 :]
    stream = data[slice(*header[f"{name}::stream"]["data_offsets"])]

    def edit(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        row = manifest["tensors"][name]
        row[4] = zlib.crc32(stream + data[begin : begin + 4 * row[2]])

    with pytest.raises(CorruptCheckpointError, match=rf"'{name}'.*step"):
        load_compressed(forged(good, edit, data))
