"""Files with a step for each row or column, told in four bits: format version 4."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdo.channels import Axis, ChannelSteps, channels
from rdo.checkpoint import (
    inspect_compressed,
    load_compressed,
    load_quantized,
    open_compressed,
    save_compressed,
    verify_compressed,
)
from rdo.checkpoint.manifest import VERSION, Group, Record
from rdo.errors import ConfigError, CorruptCheckpointError
from rdo.quantizers import AllocatedQuantizer, Quantizer, UniformQuantizer
from tests import format_version_3
from tests.rdo.test_format import same
from tests.sealing import Edit, forged, with_stream

CODERS = ["fixed_length", "exp_golomb", "huffman", "rans", "context"]
PARTS = ("header_bytes", "table_bytes", "index_bytes", "payload_bytes", "scale_bytes", "raw_bytes")


def told(tensor: Tensor, axis: Axis, base: float = 0.3) -> ChannelSteps:
    """Steps with every exponent that there is, if the tensor has so many channels."""
    exponents = torch.arange(channels(tensor.shape, axis)) * 7 % 16 - 8
    return ChannelSteps(base, axis, exponents.to(torch.int8))


def quantizer_of(state: dict[str, Tensor]) -> AllocatedQuantizer:
    """For tensors whose names end with what has steps of its own."""
    found: dict[str, ChannelSteps] = {}
    axis: Axis
    for axis in ("rows", "columns"):
        found |= {name: told(tensor, axis) for name, tensor in state.items() if name.endswith(axis)}
    return AllocatedQuantizer(dict.fromkeys(state.keys() - found.keys(), 0.4), 2.0, "absolute", channels=found)


def model() -> dict[str, Tensor]:
    """Two and three axes, even and odd numbers of rows and columns, one of each, segments that end within a row."""
    chance = torch.Generator().manual_seed(0)
    sizes = [(70, 131), (16, 9), (5, 64), (3, 5, 7), (2, 3, 8), (1, 6), (6, 1)]
    types = [torch.float32, torch.bfloat16, torch.float16]
    state = {
        f"{size} {dtype} {axis}": torch.randn(size, generator=chance).to(dtype)
        for size in sizes
        for dtype in types
        for axis in ("rows", "columns")
    }
    double = torch.randn(4, 5, generator=chance).double()
    return state | {"whole": torch.randn(30, 8, generator=chance), "double columns": double}


@pytest.fixture(params=CODERS)
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Segments are so short that the larger tensors have three."""
    monkeypatch.setattr("rdo.coders.rans._SEGMENT_SIZES_LOG2", range(12, 13))
    for name in ("exp_golomb", "fixed_length", "huffman", "context"):
        monkeypatch.setattr(f"rdo.coders.{name}._SEGMENT_SIZE_LOG2", 12)
    return str(request.param)


def test_weights_are_symbols_times_the_steps_of_their_rows_or_columns(coder: str, tmp_path: Path) -> None:
    state = model()
    quantizer, path = quantizer_of(state), tmp_path / "model.rdo"
    info = save_compressed(state, path, quantizer=quantizer, coder=coder)
    assert info == inspect_compressed(path)
    assert info.file_bytes == path.stat().st_size == sum(getattr(info, part) for part in PARTS)
    assert verify_compressed(path).sound
    loaded, (quantized, _), documented = load_compressed(path), load_quantized(path), format_version_3.decode_file(path)
    for name, tensor in state.items():
        symbols, steps = quantized[name].symbols, quantizer.steps(tensor, name)
        assert torch.equal(symbols, quantizer.quantize(tensor, name).symbols)
        assert torch.equal(quantized[name].steps.reshape(-1), steps.reshape(-1))
        by_hand = symbols.float() * (steps.reshape(*tensor.shape[:-1], 1) if name.endswith("rows") else steps)
        assert torch.equal(loaded[name], by_hand.to(tensor.dtype)), name
        assert torch.equal(loaded[name], quantized[name].dequantize(tensor.dtype)), name
        assert same(documented[name], loaded[name]), name
        rounded = load_compressed(path, dtype=torch.bfloat16)[name]
        assert torch.equal(rounded, by_hand.to(torch.bfloat16)), name


def test_rows_are_those_of_the_whole_tensor(coder: str, tmp_path: Path) -> None:
    state = model()
    save_compressed(state, tmp_path / "model.rdo", quantizer=quantizer_of(state), coder=coder)
    whole = load_compressed(tmp_path / "model.rdo")
    with open_compressed(tmp_path / "model.rdo") as file:
        assert file.records["(70, 131) torch.float32 columns"].segments == 3
        for name, tensor in whole.items():
            count = len(tensor)
            for begin, end in ((0, 0), (0, 1), (count - 1, count), (count // 3, count // 2), (0, count)):
                assert torch.equal(file.rows(name, begin, end), tensor[begin:end]), (name, begin, end)


def test_symbols_beyond_float32_are_rounded_as_everywhere(tmp_path: Path) -> None:
    weight = torch.tensor([[16_777_217.0 * 4, 3.0], [2.0**29 + 64, -5.0]], dtype=torch.float64)
    state = {"columns": weight}
    quantizer = AllocatedQuantizer({}, 2.0, "absolute", {"columns": told(weight, "columns", base=16.0)})
    save_compressed(state, tmp_path / "w", quantizer=quantizer)
    found = load_compressed(tmp_path / "w", dtype=torch.float32)["columns"]
    assert torch.equal(found, quantizer.quantize(weight, "columns").dequantize())
    assert int(load_quantized(tmp_path / "w")[0]["columns"].symbols.max()) > 2**24


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_steps_take_four_bits_and_a_base(axis: Axis, coder: str, tmp_path: Path) -> None:
    for size in ((6, 9), (7, 8), (3, 5, 70)):
        weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
        steps = told(weight, axis)
        count, path = len(steps.exponents), tmp_path / "w"
        save_compressed({axis: weight}, path, quantizer=quantizer_of({axis: weight}), coder=coder)
        [info] = inspect_compressed(path).tensors
        assert (info.steps, info.channels) == (count, axis)
        assert info.scale_bytes == 4 + -(-count // 2)
        with open_compressed(path) as file:
            head = file._container.read(f"{axis}::stream", 0, file.records[axis].head_bytes)
            assert head.size == info.table_bytes + 4 + -(-count // 2) + 8
        scales = head[info.table_bytes :][: info.scale_bytes].tobytes()
        assert struct.unpack("<f", scales[:4]) == struct.unpack("<f", struct.pack("<f", 0.3))
        halves = [half for byte in scales[4:] for half in (byte & 15, byte >> 4)]
        assert halves[:count] == [exponent + 8 for exponent in steps.exponents.tolist()]
        assert halves[count:] == [0] * (count % 2)


def test_files_without_channels_are_of_version_3_and_with_them_of_4(tmp_path: Path) -> None:
    state = {"rows": torch.randn(6, 9), "w": torch.randn(4, 4), "bias": torch.ones(3)}
    assert save_compressed(state, tmp_path / "4", quantizer=quantizer_of(state)).version == 4 == VERSION
    plain = AllocatedQuantizer(dict.fromkeys(state, 0.3), 2.0, "absolute")
    for name, options in {
        "allocated": {"quantizer": plain},
        "uniform": {"quantizer": UniformQuantizer(0.3)},
        "lossless": {"lossless": True},
        "raw": {"compressible": lambda name, tensor: False, "quantizer": quantizer_of(state)},
    }.items():
        assert save_compressed(state, tmp_path / name, **options).version == 3
        assert b"channels" not in (tmp_path / name).read_bytes()


def test_a_file_of_version_4_needs_no_channels(tmp_path: Path) -> None:
    """It may hold whatever one of version 3 may."""
    save_compressed({"w": torch.randn(4, 4)}, tmp_path / "w")
    path = forged(tmp_path / "w", lambda header, manifest: manifest.update(version=4))
    assert torch.equal(load_compressed(path)["w"], load_compressed(tmp_path / "w")["w"])


def test_tied_tensors_have_one_stream(tmp_path: Path) -> None:
    weight = torch.randn(6, 9)
    save_compressed({"rows": weight, "tied": weight}, tmp_path / "w", quantizer=quantizer_of({"rows": weight}))
    loaded = load_compressed(tmp_path / "w")
    assert loaded["tied"] is loaded["rows"]


def test_allocated_steps_must_suit_the_tensor() -> None:
    weight = torch.randn(6, 9)
    quantizer = AllocatedQuantizer({"v": 0.5}, 2.0, "absolute", {"w": told(weight, "columns")})
    assert quantizer.names == {"v", "w"}
    assert quantizer.config() == {"name": "allocated", "bits": 2.0, "distortion": "absolute", "dead_zone": 0.0}
    assert quantizer.channel_steps(weight, "v") is None
    assert (quantizer.steps(weight, "v").shape, quantizer.steps(weight, "w").shape) == ((), (1, 9))
    for other in (weight.t(), torch.randn(()), torch.empty(0, 9)):
        with pytest.raises(ConfigError, match=r"w: 9 steps for the \d columns of a tensor of size"):
            quantizer.quantize(other, "w")
    with pytest.raises(ConfigError, match="x: no step was allocated"):
        quantizer.quantize(weight, "x")


def test_other_quantizers_tell_no_steps() -> None:
    quantizer: Quantizer = UniformQuantizer()
    assert quantizer.channel_steps(torch.randn(6, 9)) is None


@pytest.mark.parametrize("base", [0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45, 1e39])
def test_a_base_must_give_positive_numbers(base: float) -> None:
    with pytest.raises(ConfigError, match=r"base .* positive"):
        ChannelSteps(base, "rows", torch.tensor([-8, 7], dtype=torch.int8))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Nine rows and thirteen columns: half a byte is left over in both."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(9, 13, generator=generator) for name in ("rows", "columns", "whole")}
    save_compressed(state, tmp_path / "good.rdo", quantizer=quantizer_of(state))
    return tmp_path / "good.rdo"


def in_head(path: Path, name: str, at: int, data: bytes) -> Path:
    """A file with other bytes at a place behind the table of a stream, and right checksums."""
    begin = next(tensor.table_bytes for tensor in inspect_compressed(path).tensors if tensor.name == name) + at

    def change(stream: bytearray) -> None:
        stream[begin : begin + len(data)] = data

    return with_stream(path, name, change)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_changed_exponents_change_their_row_or_column_alone(good: Path, name: str) -> None:
    """So the forged files below are refused for nothing but what was forged."""
    before, after = load_compressed(good), load_compressed(in_head(good, name, 4, b"\x00"))
    changed = after[name] != before[name]
    rest = changed[2:] if name == "rows" else changed[:, 2:]
    assert bool(changed.any())
    assert not bool(rest.any())


@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize("base", [0.0, -0.3, float("nan"), float("inf"), 3e38, 1e-45])
def test_impossible_bases_are_refused(good: Path, name: str, base: float) -> None:
    path = in_head(good, name, 0, struct.pack("<f", base))
    reads: list[Callable[[], object]] = [lambda: load_compressed(path), lambda: load_quantized(path)]
    for read in reads:
        with pytest.raises(CorruptCheckpointError, match=rf"'{name}'.*step is not a positive number"):
            read()
    assert list(verify_compressed(path).damaged) == [name]


@pytest.mark.parametrize(("name", "last"), [("rows", 4 + 4), ("columns", 4 + 6)])
def test_four_bits_left_over_must_be_zero(good: Path, name: str, last: int) -> None:
    for bit in (4, 7):
        path = in_head(good, name, last, bytes([1 << bit]))
        with pytest.raises(CorruptCheckpointError, match=rf"'{name}'.*half byte after the last step"):
            load_compressed(path)


def _row(name: str, index: int, value: Any) -> Edit:
    return lambda header, manifest: manifest["tensors"][name].__setitem__(index, value)


def _channels(name: str, value: Any) -> Edit:
    """Of the group of a tensor."""
    return lambda header, manifest: manifest["groups"][manifest["tensors"][name][0]].update(channels=value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_row("rows", 2, 13), "'rows': 13 steps for the 9 rows"),
        (_row("rows", 2, 1), "'rows': 1 steps for the 9 rows"),
        (_row("rows", 2, 0), "'rows': 0 steps"),
        (_row("rows", 2, 117), "'rows': 117 steps for the 9 rows"),
        (_row("columns", 2, 9), "'columns': 9 steps for the 13 columns"),
        (_row("columns", 1, [13, 9]), "'columns': 13 steps for the 9 columns"),
        (_row("columns", 1, [9 * 13]), "'columns': 13 steps for the 117 columns"),
        (_row("columns", 1, []), "'columns': 13 steps"),
        (_row("rows", 3, 0), "'rows'.*checksum"),
        (_channels("rows", "columns"), "'rows': 9 steps for the 13 columns"),
        (_channels("rows", "row"), "group 0: steps of unknown channels 'row'"),
        (_channels("rows", None), "group 0: steps of unknown channels None"),
        (_channels("rows", ["rows"]), "group 0: steps of unknown channels"),
        (_channels("whole", "rows"), "'whole': 1 steps for the 9 rows"),
        (lambda header, manifest: manifest["groups"][0].pop("channels"), "'rows'"),
        (lambda header, manifest: manifest.update(version=3), "group 0: steps of channels in a file of version 3"),
    ],
)
def test_contradictions_are_detected(good: Path, edit: Edit, message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        load_compressed(forged(good, edit))


def test_rows_are_counted_by_all_axes_but_the_last(good: Path) -> None:
    found, expected = load_compressed(forged(good, _row("rows", 1, [3, 3, 13]))), load_compressed(good)
    assert torch.equal(found["rows"], expected["rows"].reshape(3, 3, 13))


def test_a_declared_number_of_channels_alone_allocates_nothing() -> None:
    """The head, which the file must have room for, grows with it."""
    group = Group(torch.float32, {"name": "rans"}, {"name": "allocated"}, channels="columns")
    assert Record(group, (1, 2**40), 2**40, segment_log2=30).head_bytes > 2**39


def test_a_changed_byte_in_any_stream_is_noticed(good: Path) -> None:
    content, broken = good.read_bytes(), good.with_name("broken.rdo")
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header, len(content) - 36):
        changed = bytearray(content)
        changed[place] ^= 0x10
        broken.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError, match="tensor '"):
            load_compressed(broken)
