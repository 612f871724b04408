"""Compressed checkpoints: what comes back, what it costs, and what never gets written."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import rdo
from rdo.checkpoint import (
    inspect_compressed,
    is_compressible,
    load_compressed,
    load_quantized,
    save_compressed,
)
from rdo.coders import CODERS, make_coder
from rdo.errors import (
    ConfigError,
)
from rdo.quantizers import Quantizer, RelativeQuantizer, UniformQuantizer

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
PARTS = ("header_bytes", "table_bytes", "index_bytes", "payload_bytes", "scale_bytes", "raw_bytes")


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def identical(left: Tensor, right: Tensor) -> bool:
    def data(tensor: Tensor) -> np.ndarray[Any, Any]:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0)

    same = left.dtype == right.dtype and left.shape == right.shape
    return same and bool(np.array_equal(data(left), data(right)))


def saved_and_loaded(state: dict[str, Tensor], path: Path, **options: Any) -> dict[str, Tensor]:
    """Save, load, and check what must hold for every file."""
    info = save_compressed(state, path, **options)
    assert info == inspect_compressed(path)
    assert info.file_bytes == path.stat().st_size == sum(getattr(info, part) for part in PARTS)
    assert [tensor.name for tensor in info.tensors] == list(state)
    loaded = load_compressed(path)
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert loaded[name].is_contiguous()
    return loaded


@pytest.mark.parametrize("coder", ["fixed_length", "exp_golomb", "huffman", "rans"])
@pytest.mark.parametrize(
    "quantizer",
    [
        UniformQuantizer(step=2**-6),
        UniformQuantizer(step=0.01, dead_zone=0.2),
        RelativeQuantizer(ratio=0.3),
        RelativeQuantizer(ratio=0.3, granularity="row", dead_zone=0.1),
    ],
    ids=lambda quantizer: f"{quantizer.name}-{getattr(quantizer, 'granularity', 'tensor')}",
)
def test_coded_tensors_are_exactly_symbols_times_step(tmp_path: Path, coder: str, quantizer: Quantizer) -> None:
    sizes = [(1, 1), (7, 13), (64, 65), (3, 5, 7), (2, 3, 3, 3), (1, 200)]
    state = {f"{size}": normal(*size, seed=index) for index, size in enumerate(sizes)}
    loaded = saved_and_loaded(state, tmp_path / "model.rdo", quantizer=quantizer, coder=coder)
    quantized, raw = load_quantized(tmp_path / "model.rdo")
    assert not raw
    for name, tensor in state.items():
        expected = quantizer.quantize(tensor)
        assert identical(loaded[name], expected.dequantize())
        assert torch.equal(quantized[name].symbols, expected.symbols)
        assert torch.equal(quantized[name].steps.reshape(-1), expected.steps.reshape(-1))


def test_every_dtype_comes_back_as_it_was(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    for dtype in FLOATS:
        state[f"{dtype} matrix"] = normal(5, 9, dtype=dtype)
        state[f"{dtype} vector"] = torch.tensor([0.0, -0.0, 1.5, float("inf"), -2.0]).to(dtype)
    for dtype in WHOLE:
        state[f"{dtype}"] = torch.tensor([[0, 1], [100, 127]]).to(dtype)
    state["bool"] = torch.tensor([[True, False, True]])
    loaded = saved_and_loaded(state, tmp_path / "model.rdo")
    for name, tensor in state.items():
        coded = is_compressible(name, tensor)
        assert coded == (name.endswith("matrix") and "float8" not in name)
        expected = UniformQuantizer().quantize(tensor).dequantize(tensor.dtype) if coded else tensor
        assert identical(loaded[name], expected), name


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_floating_point_dtype_can_be_coded(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = normal(6, 11, dtype=dtype)
    loaded = saved_and_loaded({"w": tensor}, tmp_path / "w", compressible=lambda name, tensor: True)
    assert identical(loaded["w"], UniformQuantizer().quantize(tensor).dequantize(dtype))
    assert inspect_compressed(tmp_path / "w").coded_parameters == 66


def test_odd_tensors_survive(tmp_path: Path) -> None:
    base = normal(12, 10)
    state = {
        "scalar": torch.tensor(1.25),
        "empty": torch.empty(0),
        "empty matrix": torch.empty(0, 4, dtype=torch.bfloat16),
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": torch.tensor([[0.5]]).expand(3, 4),
        "": normal(3, 3),
        "a": normal(2, 70),
        "a::stream": torch.ones(3),
        "::steps": torch.ones(2),
        "__metadata__": torch.ones(1),
        'naïve/层 "quoted"\n': normal(4, 4),
        "zero": torch.zeros(9, 9),
        "constant": torch.full((9, 9), -0.75),
        "parameter": nn.Parameter(normal(5, 5)),
        "inference": torch.complex(normal(4, 4), normal(4, 4)).conj().imag,
    }
    loaded = saved_and_loaded(state, tmp_path / "model.rdo")
    for name, tensor in state.items():
        if is_compressible(name, tensor):
            tensor = UniformQuantizer().quantize(tensor).dequantize()
        assert identical(loaded[name], tensor.detach().resolve_neg()), name
        assert not loaded[name].requires_grad
    assert saved_and_loaded({}, tmp_path / "nothing.rdo") == {}


def test_tied_weights_are_stored_once_and_come_back_as_one_object(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
            self.norm, self.norm_again = nn.LayerNorm(16), nn.LayerNorm(16)
            self.head.weight, self.norm_again.weight = self.embedding.weight, self.norm.weight

    model = Tied()
    info = save_compressed(model, tmp_path / "tied.rdo")
    assert {row.name: row.tied_to for row in info.tensors if row.kind == "tied"} == {
        "head.weight": "embedding.weight",
        "norm_again.weight": "norm.weight",
    }
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    loaded = load_compressed(tmp_path / "tied.rdo", dtype=torch.bfloat16)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    assert loaded["norm_again.weight"] is loaded["norm.weight"]
    model.load_state_dict(loaded, strict=True)
    quantized, raw = load_quantized(tmp_path / "tied.rdo")
    assert quantized["head.weight"] is quantized["embedding.weight"]
    assert raw["norm_again.weight"] is raw["norm.weight"]


def test_views_of_one_storage_in_other_layouts_are_stored_separately(tmp_path: Path) -> None:
    weight = normal(8, 8)
    state = {
        "w": weight,
        "transposed": weight.t(),
        "rows": weight[:4],
        "flat": weight.view(64),
        "equal": weight.clone(),
    }
    info = save_compressed(state, tmp_path / "views.rdo")
    assert all(row.kind != "tied" for row in info.tensors)
    loaded = load_compressed(tmp_path / "views.rdo")
    assert torch.equal(loaded["transposed"], loaded["w"].t())
    assert loaded["equal"] is not loaded["w"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    state = {f"layer.{index}": normal(17, 40 + index, seed=index) for index in range(12)} | {"bias": torch.ones(5)}
    quantizer = RelativeQuantizer(ratio=0.2, granularity="row")
    contents = set()
    for attempt in range(4):
        save_compressed(state, tmp_path / f"{attempt}", quantizer=quantizer)
        contents.add((tmp_path / f"{attempt}").read_bytes())
    assert len(contents) == 1
    save_compressed(state, tmp_path / "0", quantizer=quantizer, coder="huffman")
    assert (tmp_path / "0").read_bytes() not in contents


def test_the_bytes_are_those_that_the_document_describes(tmp_path: Path) -> None:
    """An independent writer of docs/format.md, to the byte; only the coder's stream is taken as given."""
    weight, bias = normal(2, 64), torch.tensor([1.0, -2.5]).bfloat16()
    state = {"w": weight, "bias": bias, "tied": weight, "ids::x": torch.tensor(7)}
    save_compressed(state, tmp_path / "model.rdo", quantizer=RelativeQuantizer(ratio=0.5, granularity="row"))

    deviations = weight.double().square().mean(1).sqrt()
    steps = (0.5 * deviations).float()
    coder = make_coder("rans")
    stream = coder.encode((weight / steps[:, None]).round().int().numpy().reshape(-1))
    [length] = stream.lengths
    index = struct.pack("<II", length, google_crc32c.value(stream.payload))
    head = stream.table.tobytes() + steps.numpy().astype("<f4").tobytes() + index
    coded = head + stream.payload.tobytes()
    ids, raw = (7).to_bytes(8, "little"), bytes.fromhex("803f20c0")
    quantizer = {"name": "relative", "dead_zone": 0.0, "ratio": 0.5, "granularity": "row"}
    manifest = {
        "format": "rdo-checkpoint",
        "version": 3,
        "writer": f"rdo {rdo.__version__}",
        "groups": [
            {"kind": "coded", "dtype": "float32", "coder": coder.config(), "quantizer": quantizer},
            {"kind": "raw", "dtype": "bfloat16", "stored": "bfloat16"},
            {"kind": "raw", "dtype": "int64", "stored": "int64"},
        ],
        "tensors": {
            "w": [0, [2, 64], 2, stream.table.nbytes, stream.segment_log2, google_crc32c.value(head)],
            "bias": [1, [2]],
            "tied": "w",
            "ids::x": [2, []],
        },
    }
    text = json.dumps(manifest, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {"rdo": text}}
    data = b""
    for name, dtype, shape, part in (
        ("ids::x::raw", "I64", [], ids),
        ("::raw_crc32c", "U32", [2], struct.pack("<II", google_crc32c.value(raw), google_crc32c.value(ids))),
        ("bias", "BF16", [2], raw),
        ("w::stream", "U8", [len(coded)], coded),
        ("::seal", "U8", [36], bytes(36)),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)
    start = len(start).to_bytes(8, "little") + start
    whole = start + data[:-36] + struct.pack("<I", google_crc32c.value(start))
    assert (tmp_path / "model.rdo").read_bytes() == whole + hashlib.sha256(whole).digest()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.tuples(st.lists(st.integers(0, 7), max_size=3), st.sampled_from([*FLOATS, torch.int16, torch.bool])),
        max_size=5,
    ),
    coder=st.sampled_from(sorted(CODERS.names())),
    raw_dtype=st.sampled_from([None, torch.bfloat16, torch.float32]),
)
def test_any_state_dict_round_trips(
    tmp_path: Path, state: dict[str, tuple[list[int], torch.dtype]], coder: str, raw_dtype: torch.dtype | None
) -> None:
    tensors = {name: (normal(*size, seed=len(name)) * 100).to(dtype) for name, (size, dtype) in state.items()}
    loaded = saved_and_loaded(tensors, tmp_path / "any.rdo", coder=coder, raw_dtype=raw_dtype)
    for name, tensor in tensors.items():
        if is_compressible(name, tensor):
            expected = UniformQuantizer().quantize(tensor).dequantize(tensor.dtype)
        else:
            narrowed = raw_dtype is not None and tensor.is_floating_point() and tensor.dtype.itemsize > 1
            expected = tensor.to(raw_dtype).to(tensor.dtype) if narrowed else tensor
        assert identical(loaded[name], expected)


def test_dtype_and_raw_dtype_convert_floating_point_tensors_only(tmp_path: Path) -> None:
    state = {"w": normal(8, 8), "bias": normal(9), "ids": torch.arange(4), "mask": torch.tensor([True])}
    plain = save_compressed(state, tmp_path / "plain")
    info = save_compressed(state, tmp_path / "small", raw_dtype=torch.bfloat16)
    assert plain.raw_bytes - info.raw_bytes == 2 * 9
    loaded = load_compressed(tmp_path / "small", dtype=torch.float64)
    assert [tensor.dtype for tensor in loaded.values()] == [torch.float64, torch.float64, torch.int64, torch.bool]
    assert torch.equal(loaded["bias"], state["bias"].bfloat16().double())
    with pytest.raises(ConfigError, match="int8"):
        load_compressed(tmp_path / "small", dtype=torch.int8)
    with pytest.raises(ConfigError, match="raw_dtype"):
        save_compressed(state, tmp_path / "x", raw_dtype=torch.int8)
    with pytest.raises(ConfigError, match=r"bias.*float16"):
        save_compressed({"bias": torch.tensor([1e6])}, tmp_path / "x", raw_dtype=torch.float16)


def test_every_byte_is_attributed(tmp_path: Path) -> None:
    state = {"w": normal(30, 64), "v": normal(30, 64, seed=1), "bias": torch.ones(7), "tied": None}
    state["tied"] = state["w"]
    quantizer = RelativeQuantizer(ratio=0.5, granularity="row")
    info = save_compressed(state, tmp_path / "model.rdo", quantizer=quantizer)  # type: ignore[arg-type]
    rows = {row.name: row for row in info.tensors}
    assert info.scale_bytes == 2 * 30 * 4
    assert info.raw_bytes == rows["bias"].raw_bytes == 28
    assert info.payload_bytes == rows["w"].payload_bytes + rows["v"].payload_bytes
    assert rows["tied"].stored_bytes == 0
    assert (info.parameters, info.coded_parameters) == (2 * 30 * 64 + 7, 2 * 30 * 64)
    assert info.bits_per_parameter == pytest.approx(8 * info.file_bytes / info.parameters)
    with safe_open(tmp_path / "model.rdo", framework="np") as file:
        assert sorted(file.keys()) == ["::raw_crc32c", "::seal", "bias", "v::stream", "w::stream"]
        assert len(file.get_tensor("w::stream")) == rows["w"].stored_bytes
        header = 8 + int.from_bytes((tmp_path / "model.rdo").read_bytes()[:8], "little")
    assert info.index_bytes == 2 * 8
    assert info.header_bytes == header + 4 + 36
    assert sum(getattr(info, part) for part in PARTS) == info.file_bytes
