"""Every single-bit flip of a file of 64 KB, and every cut, is noticed by whoever reads what was damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rdo.checkpoint import CompressedFile, load_compressed, open_compressed, save_compressed, verify_compressed
from rdo.coders import CODERS
from rdo.errors import CorruptCheckpointError
from rdo.quantizers import RelativeQuantizer
from tests.fuzz.forge import Forgery


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


@pytest.fixture
def path(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "file.rdo"
    path.write_bytes(content)
    return path


def test_the_whole_file_is_good(content: bytes, path: Path) -> None:
    assert 60_000 < len(content) < 72_000, len(content)
    assert verify_compressed(path).sound
    assert len(load_compressed(path)) == 4 * len(CODERS.names())


def test_a_cut_at_any_byte_is_noticed(content: bytes, path: Path) -> None:
    for length in range(len(content) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(CorruptCheckpointError), open_compressed(path):
            pass


def missed(content: bytes, path: Path, read: Callable[[], object], begin: int, end: int, every: int) -> list[int]:
    """Those flips of every so many bits between two bytes of the file that reading does not notice."""
    unnoticed = []
    read()  # without damage
    with open(path, "r+b", buffering=0) as raw:
        for bit in range(8 * begin, 8 * end, every):
            at = bit >> 3
            os.pwrite(raw.fileno(), bytes([content[at] ^ 1 << (bit & 7)]), at)
            try:
                read()
                unnoticed.append(bit)
            except CorruptCheckpointError:
                pass
            os.pwrite(raw.fileno(), content[at : at + 1], at)
    return unnoticed


def readers(file: CompressedFile) -> Iterator[tuple[int, int, Callable[[], object]]]:
    """Where each entry of a file begins and ends, and what reads it, as loading the tensor does."""
    container = file._container
    for entry, (begin, end) in container._spans.items():
        names = [entry.removesuffix("::stream")]
        if entry.startswith("::"):
            names = [name for name, record in file.records.items() if record.kind == "raw"]

        def read(names: list[str] = names) -> None:
            for name in names:
                file.check(name)

        if entry != "::seal":
            yield container.header_bytes + begin, container.header_bytes + end, read


def flips(content: bytes, path: Path, every: int) -> None:
    """Flip bits of the whole file, every bit of its header and its seal among them."""

    def opened() -> None:
        with open_compressed(path):
            pass

    def hashed() -> None:
        with open_compressed(path) as file:
            if not file.is_whole():
                raise CorruptCheckpointError("the hash is wrong")

    header = 8 + int.from_bytes(content[:8], "little")
    assert not missed(content, path, opened, 0, header, 1)
    assert not missed(content, path, opened, len(content) - 36, len(content) - 32, 1)
    assert not missed(content, path, hashed, len(content) - 32, len(content), 1)
    with open_compressed(path) as file:
        places = [(header, header), *((begin, end) for begin, end, _ in readers(file)), (len(content) - 36, 0)]
        assert all(before[1] == after[0] for before, after in pairwise(sorted(places[:-1]) + places[-1:]))
        for begin, end, read in readers(file):
            assert not missed(content, path, read, begin, end, every)


def test_a_flip_of_any_bit_of_the_header_and_a_sample_of_others_is_noticed(content: bytes, path: Path) -> None:
    flips(content, path, every=97)


@pytest.mark.slow
def test_a_flip_of_any_bit_is_noticed(content: bytes, path: Path) -> None:
    flips(content, path, every=1)
