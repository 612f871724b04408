"""Every flip and every cut is noticed, and a killed writer leaves a whole file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rdo.checkpoint import load_compressed, open_compressed, save_compressed
from rdo.coders import CODERS, make_coder
from rdo.errors import CorruptCheckpointError, RdoError
from rdo.quantizers import RelativeQuantizer, UniformQuantizer
from tests.fuzz.files import same
from tests.fuzz.forge import Forgery
from tests.fuzz.run import fuzz

QUANTIZERS = {
    "uniform": UniformQuantizer(step=0.05),
    "tensor": RelativeQuantizer(ratio=0.3, granularity="tensor"),
    "row": RelativeQuantizer(ratio=0.3, granularity="row"),
}
CODED = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RAW = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int8, torch.uint8, torch.bool]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("target", "executions"), [("streams", 20_000), ("files", 800)])
def test_damaged_inputs_give_typed_errors_or_the_right_data(target: str, executions: int) -> None:
    findings = fuzz(target, executions, seed=1, seconds=60)
    assert not findings.found
    assert findings.executions == executions
    assert 0.02 < findings.accepted / executions < 0.6, "the damage reaches what lies behind the first checks"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of some 64 KiB with streams of all coders, several segments, tied and raw tensors."""
    chance = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("whole") / "whole.rdo"
    files: list[bytes] = []
    for coder in CODERS.names():
        weight = torch.randn(120, 128, generator=chance)
        state = {"w": weight, "tied": weight, "raw": torch.randn(400, generator=chance), "flag": torch.tensor(True)}
        save_compressed(state, path, coder=coder, quantizer=RelativeQuantizer(ratio=0.3, granularity="row"))
        files.append(path.read_bytes())
    joined = Forgery.of(files[0])
    joined.manifest["tensors"], joined.entries = {}, {"::raw_crc32c": joined.entries["::raw_crc32c"]}
    groups: list[object] = []
    seal = None
    for number, file in enumerate(files):
        part = Forgery.of(file)
        for name, row in part.manifest["tensors"].items():
            new = f"{name}{number}"
            joined.manifest["tensors"][new] = (
                f"{row}{number}" if isinstance(row, str) else [row[0] + len(groups), *row[1:]]
            )
            for suffix in ("", "::stream"):
                if name + suffix in part.entries:
                    joined.entries[new + suffix] = part.entries[name + suffix]
        groups += part.manifest["groups"]
        seal = part.entries["::seal"]
    joined.manifest["groups"] = groups
    joined.entries["::raw_crc32c"].shape = [2 * len(files)]
    joined.entries["::raw_crc32c"].data[:] = bytes(8 * len(files))
    assert seal is not None
    joined.entries["::seal"] = seal
    joined.reseal()
    # safetensors wants the entries aligned: by falling size of an element, the seal last
    order = {"F32": 0, "U32": 0}
    joined.entries = dict(
        sorted(joined.entries.items(), key=lambda item: (item[0] == "::seal", order.get(item[1].dtype, 1)))
    )
    return joined.content()


def read_all(path: Path) -> dict[str, Tensor]:
    """Every tensor, and the seal, as `rdo verify` reads them."""
    with open_compressed(path) as file:
        if not file.is_whole():
            raise CorruptCheckpointError(f"{path}: the hash is wrong")
    return load_compressed(path)


def test_the_whole_file_is_good(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.rdo"
    path.write_bytes(content)
    assert 60_000 < len(content) < 72_000, len(content)
    assert len(read_all(path)) == 4 * len(CODERS.names())


def test_a_cut_at_any_byte_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.rdo"
    path.write_bytes(content)
    for length in range(len(content) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(CorruptCheckpointError), open_compressed(path):
            pass


def flips(content: bytes, path: Path, bits: range) -> list[int]:
    """Those single-bit flips that reading every tensor and the hash does not notice."""
    missed = []
    path.write_bytes(content)
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            at, mask = bit >> 3, 1 << (bit & 7)
            os.pwrite(file.fileno(), bytes([content[at] ^ mask]), at)
            try:
                read_all(path)
                missed.append(bit)
            except RdoError:
                pass
            os.pwrite(file.fileno(), content[at : at + 1], at)
    return missed


def test_a_flip_of_any_bit_of_the_header_and_a_sample_of_others_is_noticed(content: bytes, tmp_path: Path) -> None:
    header = 8 + int.from_bytes(content[:8], "little")
    assert not flips(content, tmp_path / "file.rdo", range(8 * header))
    assert not flips(content, tmp_path / "file.rdo", range(8 * header, 8 * len(content), 509))


@pytest.mark.slow
def test_a_flip_of_any_bit_is_noticed(content: bytes, tmp_path: Path) -> None:
    assert not flips(content, tmp_path / "file.rdo", range(8 * len(content)))


def test_loading_notices_every_flip_in_a_tensor(content: bytes, tmp_path: Path) -> None:
    """Without the hash: the checksums of segments and pieces alone, through the real path of the tensor concerned."""
    path, begin = tmp_path / "file.rdo", 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content)
    header = json.loads(content[8:begin])
    with open_compressed(path) as file, open(path, "r+b", buffering=0) as raw:
        for name in file.records:
            first, last = header.get(f"{name}::stream", header.get(name))["data_offsets"]
            step = 1 if last - first < 4000 else 97
            for bit in range(8 * (begin + first), 8 * (begin + last), step):
                at, mask = bit >> 3, 1 << (bit & 7)
                os.pwrite(raw.fileno(), bytes([content[at] ^ mask]), at)
                with pytest.raises(CorruptCheckpointError):
                    file.check(name)
                os.pwrite(raw.fileno(), content[at : at + 1], at)
            file.check(name)


SHAPES = st.sampled_from([(), (0,), (1,), (97,), (0, 5), (1, 1), (3, 64), (13, 17), (2, 3, 5, 7), (4099,), (5, 0, 2)])


@settings(max_examples=150, deadline=None)
@given(
    coder=st.sampled_from(CODERS.names()),
    quantizer=st.sampled_from(list(QUANTIZERS)),
    dtype=st.sampled_from(CODED + RAW),
    size=SHAPES,
    layout=st.sampled_from(["contiguous", "transposed", "strided", "flipped", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_round_trips(
    coder: str, quantizer: str, dtype: torch.dtype, size: tuple[int, ...], layout: str, seed: int
) -> None:
    tensor = _tensor(size, dtype, layout, seed)
    chosen = QUANTIZERS[quantizer]
    coded = dtype in CODED and tensor.numel() > 0
    expected = chosen.quantize(tensor, "w").dequantize(dtype) if coded else tensor.contiguous()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "w.rdo"
        state = {"w": tensor, "tied": tensor, "::raw": torch.arange(3)}
        options = {"quantizer": chosen, "coder": make_coder(coder), "compressible": lambda name, t: t.dtype in CODED}
        save_compressed(state, path, **options)
        loaded = load_compressed(path)
        assert list(loaded) == ["w", "tied", "::raw"]
        assert same(loaded["w"], expected)
        assert same(loaded["tied"], expected)
        assert torch.equal(loaded["::raw"], torch.arange(3))
        if size and size[0]:
            with open_compressed(path) as file:
                assert same(file.rows("w", size[0] // 2, size[0]), expected[size[0] // 2 :].contiguous())


def _tensor(size: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * 2

    def cast(tensor: Tensor) -> Tensor:
        return tensor > 0 if dtype == torch.bool else tensor.to(dtype)

    if layout == "transposed" and size:
        return cast(values.permute(*reversed(range(values.ndim))).contiguous()).permute(*reversed(range(values.ndim)))
    if layout == "strided" and size:
        return cast(values.repeat_interleave(2, -1))[..., ::2]
    if layout == "flipped" and size:
        return cast(values.flip(-1))  # torch has no views of negative stride
    if layout == "expanded" and size and size[0]:
        return cast(values[:1]).expand(size)
    return cast(values)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed_writer", str(tmp_path), "--random", "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["other"] == 0
    assert report["old"] > 4, "killed before the rename"
    assert report["new"] > 0, "killed after it"
    left = {name for name in os.listdir(tmp_path) if name != "model.rdo"}
    assert left, "a killed writer cannot tidy up"
    assert all(name.startswith(".model.rdo.") and name.endswith(".tmp") for name in left)


def test_a_single_element_may_have_any_stride(tmp_path: Path) -> None:
    tensor = torch.tensor([3, 4])[::2]
    assert tensor.stride() == (2,)
    save_compressed({"w": tensor}, tmp_path / "w.rdo")
    assert load_compressed(tmp_path / "w.rdo")["w"].tolist() == [3]
