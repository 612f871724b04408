"""Whole files, damaged: refused with a typed error, or read as what was written.

An input is the number of the seed (uint8), 1 if the checksums were made right again (uint8), and the file.
"""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdo import load_compressed, save_compressed
from rdo.checkpoint import inspect_compressed, open_compressed
from rdo.coders import CODERS
from rdo.errors import RdoError
from rdo.quantizers import RelativeQuantizer
from tests.fuzz.damage import Damage
from tests.fuzz.forge import Entry, Forgery

FIXTURES = Path(__file__).parents[1] / "fixtures"
LIMIT = 1 << 20
"""Bytes of tensors that a file may declare."""

_DEEP: Any = []
for _ in range(300):
    _DEEP = [_DEEP]
_VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 8, 12, 30, 31, 40, 63, 255, 4096, 65536, 2**26, 2**30, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**53, 2**62, 2**62 + 1, 2**63, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), None, True, False),
    *("", "a", "rans", "huffman", "exp_golomb", "zigzag", "float32", "float8_e4m3fn", "bool", "U8", "\ud800", "\0"),
    *("rows", "columns"),
    *("x" * 5000, [], {}, [0], [[]], [2**62] * 64, [1] * 65, [0, 2**62, 2**62], _DEEP, {"name": "rans"}),
)


class Files(Damage):
    """The target; see :class:`tests.fuzz.damage.Damage`."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rdo-fuzz-")
        self._path = Path(self._directory.name) / "input.rdo"

    def seeds(self) -> list[bytes]:
        return [bytes([number, 0]) + content for number, content in enumerate(_files())]

    def mutate(self, chance: random.Random, seed: bytes, other: bytes) -> bytes:
        content = seed[2:]
        if chance.random() < 0.25:
            data = bytearray(content)
            for _ in range(1 + int(chance.random() * 2)):
                self.edit(chance, data, other)
            return seed[:1] + b"\0" + bytes(data)
        forgery = Forgery.of(content)
        kind = chance.random()
        if kind < 0.4:
            self._damage_stream(chance, forgery, other)
        elif kind < 0.8:
            for _ in range(1 + int(chance.random() * 2)):
                _damage_json(chance, forgery.manifest)
        elif kind < 0.9:
            text = bytearray(json.dumps(forgery.manifest).encode())
            self.edit(chance, text, b'{}[]",:1e9\\ud800NaN-Infinity' + b"9" * 40)
            forgery.text = text.decode(errors="replace")
        else:
            name, entry = chance.choice(list(forgery.entries.items()))
            forgery.entries[chance.choice([name, name + "x", "::steps", "__metadata__"])] = Entry(
                chance.choice([entry.dtype, "F32", "U8", "F64", "F8_E8M0"]),
                chance.choice([entry.shape, [], [0], [1], [2**40], [len(entry.data)], [-1], [2**62, 0, 2**62]]),
                entry.data,
            )
        if chance.random() < 0.95:
            forgery.reseal()
        try:
            result = forgery.content()
        except (ValueError, TypeError):
            return seed
        return seed[:1] + b"\1" + result

    def execute(self, data: bytes) -> bool:
        """Whether the file could be read.

        Raises:
            Exception: a finding.
        """
        if len(data) < 2:
            return False
        self._path.write_bytes(data[2:])
        try:
            info = inspect_compressed(self._path)
            json.dumps(info.to_json()).encode()
            loaded = load_compressed(self._path, max_output_bytes=LIMIT)
        except RdoError as error:
            str(error).encode(errors="backslashreplace")
            loaded = None
        if loaded is not None and not data[1]:
            expected = _expected()[data[0] % len(_expected())]
            assert list(loaded) == list(expected), "names differ"
            for name, tensor in expected.items():
                assert same(loaded[name], tensor), name
        try:
            with open_compressed(self._path, max_output_bytes=LIMIT) as file:
                for name, record in file.records.items():
                    file.check(name)
                    if record.size and record.size[0]:
                        row = file.rows(name, record.size[0] - 1, record.size[0])
                        assert loaded is None or same(row, loaded[name][-1:]), name
                file.is_whole()
        except RdoError:
            return False
        return loaded is not None

    def _damage_stream(self, chance: random.Random, forgery: Forgery, other: bytes) -> None:
        name = chance.choice(list(forgery.entries))
        data = forgery.entries[name].data
        before = len(data)
        self.edit(chance, data, other[-64:])
        rows = [row for coded, row in forgery.coded() if f"{coded}::stream" == name]
        if rows and len(data) != before and chance.random() < 0.5 and len(rows[0]) > 3:
            rows[0][3] += len(data) - before  # the table has grown


def _damage_json(chance: random.Random, node: Any) -> None:
    """Replace, remove or repeat something in a JSON value, anywhere."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = chance.choice(keys)
        child = node[key]
        if isinstance(child, (dict, list)) and child and chance.random() < 0.85:
            node = child
            continue
        kind = chance.random()
        if kind < 0.7:
            node[key] = chance.choice(_VALUES)
        elif kind < 0.8 and type(child) is int:
            node[key] = child + chance.choice((-1, 1, 8, 64))
        elif kind < 0.9:
            del node[key]
        elif isinstance(node, dict):
            node[chance.choice(["x", "name", "channels", "::stream", str(key) + "\ud800"])] = child
        else:
            node.insert(key, child)
        return


@cache
def _files() -> list[bytes]:
    """The fixtures of the older versions, and a small file of each coder with tensors of every kind."""
    files = [path.read_bytes() for path in sorted(FIXTURES.glob("*.rdo"))]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seed.rdo"
        for coder in CODERS.names():
            save_compressed(small_state(), path, coder=coder, quantizer=RelativeQuantizer(ratio=0.3, granularity="row"))
            files.append(path.read_bytes())
    return files


@cache
def _expected() -> list[dict[str, Tensor]]:
    expected = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seed.rdo"
        for content in _files():
            path.write_bytes(content)
            expected.append(load_compressed(path))
    return expected


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same type, size and bytes."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    first, second = (tensor.contiguous().as_strided((tensor.numel(),), (1,)) for tensor in (left, right))
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def small_state() -> dict[str, Tensor]:
    """Tensors of every kind: coded of several sizes, some of several segments, tied, and raw."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 64, generator=chance)
    return {
        "w": weight,
        "tied": weight,
        "half": torch.randn(3, 2, 3, 7, generator=chance).bfloat16(),
        "zero": torch.zeros(2, 3),
        "::odd": torch.randn(3, generator=chance),
        "ids": torch.arange(5),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 4),
        "byte": torch.randn(4, generator=chance).to(torch.float8_e4m3fn),
    }
