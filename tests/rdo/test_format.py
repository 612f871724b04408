"""The format as its documents describe it: committed files, read by rdo and by a second decoder written from docs/."""

from __future__ import annotations

import ast
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import rdo
from rdo.checkpoint import save_compressed
from rdo.checkpoint.container import DTYPES
from rdo.errors import CorruptCheckpointError
from tests import format_version_1, format_version_2, format_version_3

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = sorted(FIXTURES.glob("*.rdo"))
DECODE = {
    1: format_version_1.decode_file,
    2: format_version_2.decode_file,
    3: format_version_3.decode_file,
    4: format_version_3.decode_file,
}
CODERS = {
    1: format_version_2.DECODERS.keys(),
    2: format_version_2.DECODERS.keys(),
    3: format_version_3.DECODERS.keys(),
    4: format_version_3.DECODERS.keys() - {"float_bits"},  # lossless tensors have no steps
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_files_are_read_exactly(path: Path) -> None:
    expected = load_file(FIXTURES / f"{path.stem}.expected.safetensors")
    found = rdo.load_compressed(path)
    documented = DECODE[_manifest(path)["version"]](path)
    assert found.keys() == expected.keys() == documented.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert same(documented[name], tensor)


def same(documented: np.ndarray[Any, Any], tensor: torch.Tensor) -> bool:
    """To the bit; a second decoder has older versions' weights in float32, and bits for types that NumPy lacks."""
    if documented.dtype.kind == "f" and documented.itemsize != tensor.itemsize:
        return np.array_equal(documented, tensor.double().numpy())
    return (
        documented.shape == tensor.shape
        and documented.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def test_files_written_now_are_those_of_the_documents(tmp_path: Path) -> None:
    """What is too large for a committed file, and every width of a lossless tensor."""
    generator = torch.Generator().manual_seed(0)
    pieces = {"long": torch.randn(2**18 + 1, generator=generator), "short": torch.arange(3), "exact": torch.ones(2**18)}
    save_compressed(pieces, tmp_path / "pieces")
    widths = {
        str(dtype): torch.randn(70, 80, generator=generator).to(dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
    }
    info = save_compressed(widths, tmp_path / "widths", lossless=True)
    assert {tensor.kind for tensor in info.tensors} == {"lossless"}
    for state, name in ((pieces, "pieces"), (widths, "widths")):
        documented = format_version_3.decode_file(tmp_path / name)
        assert documented.keys() == state.keys()
        for key, tensor in state.items():
            assert same(documented[key], tensor)


def test_the_second_decoder_is_short() -> None:
    """Lines of code: what is blank, imported or said in docstrings aside."""
    source = Path(format_version_3.__file__).read_text()
    aside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if said or isinstance(node, ast.Import | ast.ImportFrom):
            aside.update(range(node.lineno, (node.end_lineno or 0) + 1))
    assert sum(bool(line.strip()) for i, line in enumerate(source.splitlines(), 1) if i not in aside) <= 150


@pytest.mark.parametrize("version", DECODE)
def test_there_is_a_file_of_every_coder(version: int) -> None:
    manifests = [manifest for manifest in map(_manifest, FILES) if manifest["version"] == version]
    groups = [group for manifest in manifests for group in manifest["groups"]]
    assert {group["coder"]["name"] for group in groups if group["kind"] != "raw"} == set(CODERS[version])


@pytest.mark.parametrize("name", ["rans", "exp_golomb"])
def test_a_file_of_version_2_has_segments_lanes_and_escapes(name: str) -> None:
    path = FIXTURES / f"v2-{name}-segments.rdo"
    with safe_open(path, "np") as file:
        table = format_version_2.Numbers(file.get_tensor("embedding.weight::stream").tobytes())
    precision_or_k, lanes, size, width = (table.number() for _ in range(4))
    assert _manifest(path)["tensors"]["embedding.weight"][1] == [70, 80]
    assert 2**size < 70 * 80
    assert (precision_or_k > 0, lanes, width > 0) == (True, 5, True)


@pytest.mark.parametrize("version", [3, 4])
def test_every_coder_since_version_3_has_a_tensor_of_two_segments(version: int) -> None:
    coders = set()
    for path in FIXTURES.glob(f"v{version}-*.rdo"):
        manifest = _manifest(path)
        for row in manifest["tensors"].values():
            group = manifest["groups"][row[0]] if isinstance(row, list) else {"kind": "tied"}
            if group["kind"] in ("coded", "lossless") and np.prod(row[1]) > 2 ** row[-2]:
                coders.add(group["coder"]["name"])
    assert coders == set(CODERS[version])


def test_there_is_a_raw_tensor_of_every_data_type() -> None:
    groups = [group for path in FIXTURES.glob("v3-raw*.rdo") for group in _manifest(path)["groups"]]
    raw = {(group["dtype"], group["stored"]) for group in groups if group["kind"] == "raw"}
    assert raw > {(name, name) for name in DTYPES} | {("float32", "bfloat16"), ("float16", "bfloat16")}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem[:2] < "v3"], ids=lambda path: path.stem)
def test_the_version_decides_how_streams_are_read(path: Path, tmp_path: Path) -> None:
    """A file that says it is of the other old version is refused where the streams differ, and read where not."""
    version = _manifest(path)["version"]
    assert rdo.inspect_compressed(path).version == version
    content = path.read_bytes()
    text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["rdo"]

    def with_version(number: int) -> Path:
        other = text.replace(f'"version":{version}', f'"version":{number}')
        changed = content.replace(json.dumps(text).encode(), json.dumps(other).encode())
        changed = changed.replace(b"%08x" % zlib.crc32(text.encode()), b"%08x" % zlib.crc32(other.encode()))
        (tmp_path / "other.rdo").write_bytes(changed)
        return tmp_path / "other.rdo"

    if "rans" in path.stem or "exp_golomb" in path.stem:
        with pytest.raises(CorruptCheckpointError, match="tensor '"):
            rdo.load_compressed(with_version(3 - version))
    else:
        assert rdo.load_compressed(with_version(3 - version)).keys() == rdo.load_compressed(path).keys()
    with pytest.raises(CorruptCheckpointError, match="without a seal"):
        rdo.load_compressed(with_version(3))


def _manifest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    [length] = struct.unpack_from("<Q", data)
    manifest: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["rdo"])
    return manifest
