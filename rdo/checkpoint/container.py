"""The container: safetensors files, written in a stream and read through the safetensors library."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library reads no longer header
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for torch.float32, and so on."""
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: Tensor) -> Bytes:
    """The elements of a tensor in C order, as little-endian bytes; shares memory where it can."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: Bytes = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return data


def checksum(*parts: Bytes) -> int:
    """zlib.crc32 of the parts one after the other."""
    value = 0
    for part in parts:
        value = zlib.crc32(part.data, value)
    return value


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its bytes are asked for when they are written, so that they need not exist before."""

    name: str
    dtype: torch.dtype
    size: tuple[int, ...]
    data: Callable[[], Bytes]

    @property
    def nbytes(self) -> int:
        count = 1
        for extent in self.size:
            count *= extent
        return count * self.dtype.itemsize


def write_safetensors(path: str | os.PathLike[str], entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same arguments give the same bytes.

    Tensors are laid out by falling size of an element, then in the order given, which aligns each of them.

    Raises:
        CheckpointError: the disk is full; the message names the path and the bytes needed.
        ConfigError: a name is not text, or there are so many tensors that readers would refuse the header.
    """
    _require_little_endian()
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in ordered:
        end = offset + entry.nbytes
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ConfigError(f"cannot write {path}: its header would take {len(text):,} bytes, readers stop at 100 MB")
    with atomic_write(path, 8 + len(text) + offset) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in ordered:
            data = entry.data()
            assert data.nbytes == entry.nbytes, (entry.name, data.nbytes, entry.nbytes)
            file.write(data.data)


class Container:
    """An open safetensors file: names, data types and sizes from its header, tensors on demand.

    The safetensors library has checked that the header agrees with the length of the file.
    """

    def __init__(self, path: Path, handle: Any, file_bytes: int) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self.metadata: dict[str, str] = handle.metadata() or {}
        self._handle = handle
        names: list[str] = handle.keys()
        slices = {name: handle.get_slice(name) for name in names}
        self.codes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}
        self.sizes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor that may share memory with the file: clone what outlives it."""
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Container]:
    """Open a safetensors file.

    Raises:
        ConfigError: the file is a pickle.
        CorruptCheckpointError: it is no complete safetensors file.
        OSError: it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    _require_little_endian()
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(8)
        file_bytes = os.fstat(file.fileno()).st_size
    try:
        handle = safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, ValueError, OverflowError) as error:
        if path.suffix in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
            raise ConfigError(
                f"{path} is a pickle, which can run code when it is read, so rdo does not read it; convert it where it "
                "is trusted: safetensors.torch.save_model(model, 'model.safetensors')"
            ) from error
        raise CorruptCheckpointError(
            f"{path}: not a complete safetensors file ({error}); fetch or write it again"
        ) from error
    with handle:
        yield Container(path, handle, file_bytes)


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise CheckpointError("rdo files are little-endian, and this machine is not; use another machine")
