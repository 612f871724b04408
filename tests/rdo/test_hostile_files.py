"""Files made to cost their reader much: refused, in little time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rdo.checkpoint import CompressedFile, load_compressed, open_compressed, save_compressed
from rdo.coders.varint import Writer
from rdo.errors import CheckpointError
from tests.fuzz.forge import Forgery
from tests.sealing import forged

HOSTILE_BYTES = 64
"""Of memory that a reader may take for a byte of a file, and"""
HOSTILE_CONSTANT = 8 << 20
"""on top of it, beside the tensors that the caller permits."""


def _alphabet(values: int) -> bytes:
    table = Writer()
    for number in (1, 2 * values, values - 1):  # one run that begins at -values
        table.number(number)
    return table.bytes().tobytes()


def _hostile(tmp_path: Path) -> dict[str, bytes]:
    """Small files that announce much."""
    path = tmp_path / "base.rdo"
    save_compressed({"w": torch.zeros(2, 64), "empty": torch.empty(0, 4)}, path, coder="huffman")
    base, files = path.read_bytes(), {}

    def forge(name: str, edit: Callable[[Forgery, list[Any], bytearray], None]) -> None:
        forgery = Forgery.of(base)
        edit(forgery, forgery.manifest["tensors"]["w"], forgery.entries["w::stream"].data)
        forgery.reseal()
        files[name] = forgery.content()

    def alphabet(values: int, extra: int) -> Callable[[Forgery, list[Any], bytearray], None]:
        def edit(forgery: Forgery, row: list[Any], data: bytearray) -> None:
            table = _alphabet(values) + b"\x08" * extra
            data[: row[3]], row[3] = table, len(table)

        return edit

    def segments(count: int, log2: int) -> Callable[[Forgery, list[Any], bytearray], None]:
        def edit(forgery: Forgery, row: list[Any], data: bytearray) -> None:
            row[1], row[4] = [count], log2
            data[-8:] = bytes(8) * min(-(-count >> log2), 1 << 13)

        return edit

    def text(old: str, new: str) -> Callable[[Forgery, list[Any], bytearray], None]:
        def edit(forgery: Forgery, row: list[Any], data: bytearray) -> None:
            forgery.text = json.dumps(forgery.manifest).replace(old, new, 1)
            assert forgery.text != json.dumps(forgery.manifest)

        return edit

    for values in (2**26, 2**26 + 1, 2**29):
        forge(f"alphabet of {values}", alphabet(values, 0))
        forge(f"alphabet of {values}, some lengths", alphabet(values, 9000))
    for count, log2 in [(2**40, 30), (2**40 + 1, 30), (2**30, 30), (2**25, 12), (2**62, 12), (2**18 + 1, 12)]:
        forge(f"{count} symbols in segments of 2^{log2}", segments(count, log2))
    for depth in (9, 200, 900, 100_000):
        forge(f"depth {depth}", text('"step":', f'"x": {"[" * depth}{"]" * depth}, "step":'))
        forge(f"name of depth {depth}", text('"huffman"', "[" * depth + "]" * depth))
    for digits in (4301, 60_000):
        forge(f"{digits} digits", text('"version": 3', '"version": ' + "3" * digits))
    forge("long coder", text('"huffman"', '"' + "x" * 60_000 + '"'))
    forge("NaN", text('"version": 3', '"version": NaN'))
    forge("NaN extent", text("[2, 64]", "[NaN, 64]"))
    forge("axes", text("[2, 64]", f"{[1] * 64 + [128]}"))
    forge("overflow", text("[2, 64]", f"{[2**62] * 64}"))
    forge("empty overflow", text("[0, 4]", f"{[0, 2**62, 2**62]}"))
    forge("twice", text('"empty":', '"w":'))
    forge("surrogate", text('"empty":', '"\\ud800": "w", "empty":'))
    forge("coder of surrogates", text('"huffman"', '"\\udfff\\ud800"'))
    forge("tied to itself", text('"empty":', '"x": "x", "empty":'))
    forge("nothing in the table", lambda f, row, data: (data.__delitem__(slice(0, row[3])), row.__setitem__(3, 0))[0])
    return files


def test_hostile_files_are_refused_and_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "hostile.rdo"
    for what, content in _hostile(tmp_path).items():
        path.write_bytes(content)
        tracemalloc.start()
        begin = time.thread_time()
        with pytest.raises(CheckpointError) as refused:
            load_compressed(path, max_output_bytes=1 << 20)
        seconds, [_, peak] = time.thread_time() - begin, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        str(refused.value).encode()
        assert peak < HOSTILE_BYTES * len(content) + HOSTILE_CONSTANT, what
        assert seconds < 1, what


def test_an_open_file_is_limited_whatever_is_read_of_it(tmp_path: Path) -> None:
    """Without a word from the caller, too: 2^29 zeros take some bytes."""

    def huge(header: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["tensors"]["w"][1], manifest["tensors"]["w"][4] = [2**29], 30

    save_compressed({"w": torch.zeros(1000, 100)}, tmp_path / "w")
    path = forged(tmp_path / "w", huge)
    reads: list[Callable[[CompressedFile], object]] = [
        lambda file: file.tensor("w"),
        lambda file: file.tensor("w", device="meta"),
        lambda file: file.rows("w", 0, 1),
        lambda file: file.quantized("w"),
        lambda file: file.check("w"),
        lambda file: file.write_plain(tmp_path / "plain"),
    ]
    for read in reads:
        with open_compressed(path) as file, pytest.raises(CheckpointError, match="limit on memory"):
            read(file)
    assert not (tmp_path / "plain").exists()
    with open_compressed(path) as file, pytest.raises(CheckpointError, match="limit"):
        file.tensor("w", torch.float64)
    with open_compressed(tmp_path / "w", max_output_bytes=400_000) as file:
        assert file.rows("w", 0, 1).shape == (1, 100)
        with pytest.raises(CheckpointError, match="limit"):
            file.rows("w", 0, 1, torch.float64)
    with open_compressed(path, max_output_bytes=2**31) as file:
        file.check_output()
