"""The container: safetensors files, written in a stream and read in parts. See docs/format.md for what seals them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError
from rdo.files import atomic_write

Bytes = NDArray[np.uint8]

CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The data types that a file can hold, and their names in its header."""
DTYPES: dict[str, torch.dtype] = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}

SEAL = "::seal"
"""The last entry of a sealed file: CRC-32C of the header, then SHA-256 of everything before these 32 bytes."""
_SEAL_BYTES = 36
_PIECE = 1 << 22
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library reads no longer header
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for torch.float32, and so on."""
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: Tensor) -> Bytes:
    """The elements of a tensor in C order, as little-endian bytes; shares memory where it can."""
    # A single element may have any stride and be contiguous all the same.
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
    data: Bytes = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return data


def crc32c(data: Bytes | bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes; contiguous."""
    import google_crc32c

    value: int = google_crc32c.value(data)
    return value


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its bytes are asked for when they are written, so that they need not exist before."""

    name: str
    dtype: torch.dtype
    size: tuple[int, ...]
    data: Callable[[], Iterable[Bytes]]

    @property
    def nbytes(self) -> int:
        count = 1
        for extent in self.size:
            count *= extent
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """A safetensors file that is to be written.

    Attributes:
        head: its header, with what precedes that.
        entries: in the order of the file.
        file_bytes: its length.
    """

    head: bytes
    entries: tuple[Entry, ...]
    file_bytes: int
    sealed: bool

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it atomically.

        Raises:
            CheckpointError: the disk is full; the message names the path and the bytes needed.
        """
        with atomic_write(path, self.file_bytes) as file:
            digest = hashlib.sha256()

            def write(data: memoryview | bytes) -> int:
                file.write(data)
                if self.sealed:
                    digest.update(data)
                return len(data)

            written = write(self.head)
            for entry in self.entries:
                nbytes = sum(write(part.data) for part in entry.data())
                assert nbytes == entry.nbytes, (entry.name, nbytes, entry.nbytes)
                written += nbytes
            if self.sealed:
                written += write(crc32c(self.head).to_bytes(4, "little")) + file.write(digest.digest())
            assert written == self.file_bytes, (written, self.file_bytes)


def planned(entries: Iterable[Entry], metadata: Mapping[str, str], *, sealed: bool = False) -> Plan:
    """Lay out a safetensors file; the same arguments give the same bytes.

    Tensors are laid out by falling size of an element, then in the order given, which aligns each of them; the seal, if
    there is one, is last.

    Raises:
        ConfigError: a name is not text, or there are so many tensors that readers would refuse the header.
    """
    _require_little_endian()
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places = [(entry.name, entry.dtype, entry.size, entry.nbytes) for entry in ordered]
    offset = 0
    for name, dtype, size, nbytes in [*places, *[(SEAL, torch.uint8, (_SEAL_BYTES,), _SEAL_BYTES)] * sealed]:
        header[name] = {"dtype": CODES[dtype], "shape": list(size), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ConfigError(
            f"{len(ordered):,} tensors would take a header of {len(text):,} bytes, and readers stop at 100 MB"
        )
    head = len(text).to_bytes(8, "little") + text
    return Plan(head, tuple(ordered), len(head) + offset, sealed)


class Container:
    """An open safetensors file: names, data types and sizes from its header, bytes and tensors on demand.

    The safetensors library has checked that the header agrees with the length of the file.

    Attributes:
        header_bytes: length of the header with what precedes it.
        codes, sizes: data type (as in the header) and size of each tensor.
    """

    def __init__(self, path: Path, handle: Any, file: FileIO, file_bytes: int) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self._handle, self._file, self._lock = handle, file, threading.Lock()
        head = self._read(0, 8 + int.from_bytes(self._read(0, 8).tobytes(), "little"))
        self.header_bytes = head.size
        try:
            header = json.loads(head[8:].tobytes())
        except (ValueError, RecursionError) as error:  # the safetensors library skips what it does not know
            raise CorruptCheckpointError(f"{path}: contradictory header: {error}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        header = {name: header[name] for name in handle.keys()}  # noqa: SIM118
        self.codes: dict[str, str] = {name: entry["dtype"] for name, entry in header.items()}
        self.sizes: dict[str, tuple[int, ...]] = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self._spans: dict[str, tuple[int, int]] = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        self.sealed = SEAL in header
        if self.sealed:
            self._check_header(crc32c(head))

    def _check_header(self, found: int) -> None:
        begin, end = self._spans[SEAL]
        if end - begin != _SEAL_BYTES or self.header_bytes + end != self.file_bytes:
            raise CorruptCheckpointError(f"{self.path}: the seal is not at the end; fetch or write the file again")
        if found != int.from_bytes(self.read(SEAL, 0, 4).tobytes(), "little"):
            raise CorruptCheckpointError(
                f"{self.path}: the header is damaged (wrong checksum); fetch or write the file again"
            )

    def tensor(self, name: str) -> Tensor:
        """A tensor that may share memory with the file: clone what outlives it."""
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def length(self, name: str) -> int:
        """Bytes of a tensor."""
        begin, end = self._spans[name]
        return end - begin

    def read(self, name: str, begin: int, end: int) -> Bytes:
        """Bytes ``begin`` to ``end`` (exclusive) of a tensor, in memory of their own; from any thread.

        Raises:
            CorruptCheckpointError: the file has become shorter.
        """
        first, last = self._spans[name]
        assert 0 <= begin <= end <= last - first, (name, begin, end)
        return self._read(self.header_bytes + first + begin, end - begin)

    def pieces(self) -> Iterator[Bytes]:
        """The whole file, piece by piece."""
        for begin in range(0, self.file_bytes, _PIECE):
            yield self._read(begin, min(_PIECE, self.file_bytes - begin))

    def is_whole(self) -> bool:
        """Whether the seal's hash is that of a sealed file."""
        digest, rest = hashlib.sha256(), self.file_bytes - 32
        seal = b""
        for piece in self.pieces():
            digest.update(piece[: max(rest, 0)].data)
            seal += piece[max(rest, 0) :].tobytes()
            rest -= piece.size
        return digest.digest() == seal

    def _read(self, begin: int, size: int) -> Bytes:
        data, done = np.empty(size, np.uint8), 0
        with self._lock:
            self._file.seek(begin)
            while done < size:
                count = self._file.readinto(data[done:].data)
                if not count:
                    raise CorruptCheckpointError(f"{self.path}: the file has become shorter while it was read")
                done += count
        return data


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Container]:
    """Open a safetensors file; of one that rdo sealed, check the header.

    Raises:
        ConfigError: the file is a pickle.
        CorruptCheckpointError: it is no complete safetensors file, or its header is damaged.
        OSError: it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    _require_little_endian()
    path = Path(path)
    with open(path, "rb", buffering=0) as file:
        start = file.read(8)
        file_bytes = os.fstat(file.fileno()).st_size
        try:
            handle = safe_open(str(path), framework="pt", device="cpu")
        except (SafetensorError, ValueError, OverflowError) as error:
            if path.suffix in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
                raise ConfigError(
                    f"{path} is a pickle, which can run code when it is read, so rdo does not read it; convert it "
                    "where it is trusted: safetensors.torch.save_model(model, 'model.safetensors')"
                ) from error
            raise CorruptCheckpointError(
                f"{path}: not a complete safetensors file ({error}); fetch or write it again"
            ) from error
        with handle:
            yield Container(path, handle, file, file_bytes)


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise CheckpointError("rdo files are little-endian, and this machine is not; use another machine")
