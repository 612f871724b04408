"""Reading parts of sealed files, checking all of them, keeping every bit, and writing in a stream."""

from __future__ import annotations

import errno
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from rdo.checkpoint import (
    CheckpointInfo,
    container,
    inspect_compressed,
    load_compressed,
    open_compressed,
    save_compressed,
    spool,
    verify_compressed,
)
from rdo.coders import coder_from_config
from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError
from rdo.quantizers import RelativeQuantizer, UniformQuantizer

BY_ROW = RelativeQuantizer(ratio=0.4, granularity="row")


def model(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "long": torch.randn(150, 211, generator=generator),
        "bias": torch.randn(700_001, generator=generator),
        "half": torch.randn(40, 300, generator=generator).bfloat16(),
        "three": torch.randn(5, 7, 30, generator=generator),
        "ids": torch.arange(11),
    }


@pytest.fixture(params=["fixed_length", "exp_golomb", "huffman", "rans", "context", "lossless"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which the longest tensors have several segments."""
    monkeypatch.setattr("rdo.coders.rans._SEGMENT_SIZES_LOG2", range(12, 13))
    for name in ("exp_golomb", "fixed_length", "huffman", "context", "float_bits"):
        monkeypatch.setattr(f"rdo.coders.{name}._SEGMENT_SIZE_LOG2", 12)
    options: dict[str, Any] = {"coder": request.param, "quantizer": BY_ROW}
    save_compressed(model(), tmp_path / "model.rdo", **({"lossless": True} if request.param == "lossless" else options))
    return tmp_path / "model.rdo"


def test_rows_are_those_of_the_whole_tensor(path: Path) -> None:
    whole = load_compressed(path)
    with open_compressed(path) as file:
        for name, tensor in whole.items():
            count = len(tensor)
            for begin, end in (
                (0, 0),
                (0, 1),
                (count - 1, count),
                (count // 3, count // 2),
                (0, count),
                (count, count),
            ):
                found = file.rows(name, begin, end)
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor[begin:end])
            if tensor.is_floating_point():
                assert torch.equal(file.rows(name, 1, 4, torch.float16), file.tensor(name, torch.float16)[1:4])
            for begin, end in ((-1, 1), (0, count + 1), (2, 1)):
                with pytest.raises(ConfigError, match="rows"):
                    file.rows(name, begin, end)


def test_rows_read_and_check_their_own_segments_only(path: Path) -> None:
    content, expected = bytearray(path.read_bytes()), load_compressed(path)["long"]
    with open_compressed(path) as file:
        record, entry = file.records["long"], "long::stream"
        length = file._container.length(entry)
        begin, _ = file._container._spans[entry]
        start = file._container.header_bytes + begin
    assert record.segments == 8
    content[start + length - 1] ^= 4
    path.write_bytes(content)
    with open_compressed(path) as file:
        read = []
        with patch.object(file._container, "read", lambda *a, f=file._container.read: read.append(a) or f(*a)):
            assert torch.equal(file.rows("long", 20, 30), expected[20:30])
        assert [name for name, *_ in read] == [entry, entry]
        assert read[0][1:] == (0, record.head_bytes)
        assert read[1][2] - read[1][1] <= 0.3 * length
        with pytest.raises(CorruptCheckpointError, match="'long': wrong checksum of segment 7"):
            file.rows("long", 149, 150)
        with pytest.raises(CorruptCheckpointError, match="'long': wrong checksum of segment 7"):
            file.check("long")
        for name in file.records.keys() - {"long"}:
            file.check(name)
        assert file.is_whole() is False
    found = verify_compressed(path)
    assert (list(found.damaged), found.whole, found.sound) == (["long"], False, False)
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="checksum of the table"), open_compressed(path) as file:
        file.rows("long", 20, 30)


def test_opening_reads_the_header_and_the_seal(path: Path) -> None:
    with patch.object(container.Container, "_read", autospec=True, side_effect=container.Container._read) as read:
        info = inspect_compressed(path)
        spans = [(begin, begin + size) for _, begin, size in (call.args for call in read.call_args_list)]
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert spans == [(0, 8), (0, header), (len(content) - 36, len(content) - 32)]
    assert info.file_bytes == len(content)
    for place in (3, 9, header - 1, len(content) - 36):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError):
            inspect_compressed(path)


def test_a_raw_tensor_is_checked_piece_by_piece(path: Path) -> None:
    save_compressed(model(), path, quantizer=BY_ROW)
    content, bias = path.read_bytes(), model()["bias"]
    place = content.index(bias.numpy().tobytes())
    path.write_bytes(content[: place + 2**20] + bytes([content[place + 2**20] ^ 1]) + content[place + 2**20 + 1 :])
    with open_compressed(path) as file:
        assert torch.equal(file.rows("bias", 0, 2**18), bias[: 2**18])
        with pytest.raises(CorruptCheckpointError, match="'bias': wrong checksum of bytes 1048576 to 2097152"):
            file.rows("bias", 2**18, 2**18 + 1)
        assert torch.equal(file.rows("bias", 2**19, 700_001), bias[2**19 :])


def test_a_sound_file_is_verified(path: Path) -> None:
    done: list[int] = []
    found = verify_compressed(path, progress=done.append)
    assert found.sound
    assert (found.whole, found.damaged, found.tensors, found.version) == (True, {}, 5, 3)
    assert sum(done) == sum(tensor.numel() for tensor in model().values())


def test_verifying_takes_no_more_memory_than_allowed(path: Path) -> None:
    with pytest.raises(CheckpointError, match="limit"):
        verify_compressed(path, max_output_bytes=1000)


def test_a_file_of_an_old_version_has_no_hash(tmp_path: Path) -> None:
    found = verify_compressed(Path(__file__).parent.parent / "fixtures" / "v2-rans-row.rdo")
    assert (found.whole, found.sound, found.version) == (None, True, 2)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_bit_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    width = dtype.itemsize
    anything = torch.randint(0, 256, (3, 1000 * width), generator=generator, dtype=torch.uint8).view(dtype)
    special = torch.tensor([0.0, -0.0, float("nan"), 448.0, -448.0, 2.0**-9]).to(dtype)
    state = {
        "weights": (torch.randn(300, 70, generator=generator) * 0.02).to(dtype),
        "anything": anything,
        "vector": torch.randn(5001, generator=generator).to(dtype),
        "constant": torch.full((70, 70), 0.25).to(dtype),
        "special": special,
        "double": torch.randn(9, 9, generator=generator).double(),
        "ids": torch.arange(7),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    info = save_compressed(state, tmp_path / "model.rdo", lossless=True)
    loaded = load_compressed(tmp_path / "model.rdo")
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))
    kinds = {tensor.name: tensor.kind for tensor in info.tensors}
    assert kinds["weights"] == kinds["constant"] == "lossless"
    assert {kinds[name] for name in ("anything", "double", "ids", "empty", "special")} == {"raw"}
    rows = {tensor.name: tensor for tensor in info.tensors}
    assert rows["constant"].stored_bytes < 40
    assert rows["weights"].bits_per_parameter < {4: 27.5, 2: 12.5 if dtype == torch.bfloat16 else 14.5, 1: 7.9}[width]
    assert verify_compressed(tmp_path / "model.rdo").sound
    for options in ({"quantizer": BY_ROW}, {"coder": "rans"}):
        with pytest.raises(ConfigError, match="lossless"):
            save_compressed(state, tmp_path / "x", lossless=True, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="double"):
        save_compressed(state, tmp_path / "x", lossless=True, compressible=lambda name, _: name == "double")


def test_of_several_coders_each_tensor_gets_one_such_that_the_file_is_smallest(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "even": torch.randint(-8, 8, (64, 64), generator=generator).float(),
        "skewed": torch.randn(300, 300, generator=generator) ** 5,
        "few": torch.tensor([[1.0, 2.0, 2.0]]),
        "rows": torch.randn(300, 300, generator=generator) * torch.linspace(0.1, 9, 300)[:, None],
        "shuffled": torch.randn(64, 100, generator=generator),
    }
    names = ["fixed_length", "huffman", "rans", "context"]

    def written(coder: str | list[str]) -> CheckpointInfo:
        return save_compressed(state, tmp_path / "file", quantizer=UniformQuantizer(1.0), coder=coder)

    alone = {name: {tensor.name: tensor.stored_bytes for tensor in written(name).tensors} for name in names}
    info = written(names)
    used = set()
    for tensor in info.tensors:
        assert tensor.coder is not None
        used.add(coder_from_config(tensor.coder).name)
        assert alone[coder_from_config(tensor.coder).name][tensor.name] == tensor.stored_bytes
    assert used == {"rans", "context"}  # for "even", fixed_length would save less than its description takes
    for tensor in info.tensors:
        assert tensor.stored_bytes == min(alone[name][tensor.name] for name in used)
    others = [list(taken) for count in range(1, 5) for taken in combinations(names, count)]
    assert info.file_bytes == min(written(other).file_bytes for other in others)
    with pytest.raises(ConfigError, match="no coder"):
        save_compressed(state, tmp_path / "x", coder=[])


def test_a_coder_that_saves_less_than_its_description_takes_is_not_used(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "rows": torch.randn(90, 90, generator=generator) * torch.linspace(0.1, 9, 90)[:, None],
        "skewed": torch.randn(64, 30, generator=generator) ** 5,
    }
    quantizer = UniformQuantizer(1.0)

    def written(coder: str | list[str]) -> dict[str, int]:
        info = save_compressed(state, tmp_path / "file", quantizer=quantizer, coder=coder)
        return {tensor.name: tensor.stored_bytes for tensor in info.tensors} | {"": info.file_bytes}

    context, rans, least = written("context"), written("rans"), written(["rans", "context"])
    assert 0 < context["skewed"] - rans["skewed"] < 100
    assert least == context
    assert context[""] < rans[""]


def test_what_exceeds_memory_waits_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_compressed(model(), tmp_path / "memory", quantizer=BY_ROW)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "_PIECE", 777)
    done: list[int] = []
    save_compressed(model(), tmp_path / "disk", quantizer=BY_ROW, progress=done.append)
    assert (tmp_path / "disk").read_bytes() == (tmp_path / "memory").read_bytes()
    assert sum(done) == sum(tensor.numel() for tensor in model().values())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "memory"]
    full = patch.object(tempfile.SpooledTemporaryFile, "write", side_effect=OSError(errno.ENOSPC, "No space left"))
    with full, pytest.raises(CheckpointError, match=r"No space left.*make room"):
        save_compressed(model(1), tmp_path / "disk", quantizer=BY_ROW)
    assert (tmp_path / "disk").read_bytes() == (tmp_path / "memory").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "memory"]


def test_symbols_that_are_no_bits_are_refused(tmp_path: Path) -> None:
    """A hostile file may name any coder for a lossless tensor."""
    from tests.sealing import forged

    save_compressed({"w": torch.full((8, 8), 70000.0)}, tmp_path / "w", quantizer=UniformQuantizer(1.0))

    def edit(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["groups"][0] = {"kind": "lossless", "dtype": "bfloat16", "coder": {"name": "rans"}}
        manifest["tensors"]["w"] = [0, [8, 8], 2 + manifest["tensors"]["w"][3], *manifest["tensors"]["w"][4:]]

    with pytest.raises(CorruptCheckpointError, match="'w'"):
        load_compressed(forged(tmp_path / "w", edit))


def test_old_steps_of_one_tensor_are_a_scalar() -> None:
    from rdo.checkpoint import load_quantized

    for version in ("v1", "v2", "v3"):
        quantized, _ = load_quantized(Path(__file__).parent.parent / "fixtures" / f"{version}-rans-row.rdo")
        assert quantized["embedding.weight"].steps.shape == (70,)
        assert quantized["constant.weight"].steps.shape == ()
        assert len(quantized["constant.weight"].symbols.unique()) == 1
