"""Reading compressed checkpoints. Nothing in the file is trusted before it has been checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from rdo.checkpoint.container import (
    CODES,
    Bytes,
    Container,
    Entry,
    bytes_of,
    checksum,
    open_safetensors,
    write_safetensors,
)
from rdo.checkpoint.info import CheckpointInfo, build_info
from rdo.checkpoint.manifest import STEPS, Manifest, Record, entry_name, parse_metadata
from rdo.checkpoint.threads import in_threads
from rdo.coders import Bitstream, coder_from_config
from rdo.coders.base import Decoder
from rdo.coders.version1 import decoder_of_version_1
from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError, RdoError, UnknownNameError
from rdo.quantizers import QuantizedTensor

T = TypeVar("T")


def default_output_limit(file_bytes: int) -> int:
    """Bytes of tensors that a file of this length may expand to unless the caller says otherwise.

    One gibibyte, or 256 times the file where that is more: float32 weights at an eighth of a bit each.
    """
    return max(2**30, 256 * file_bytes)


def load_compressed(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, max_output_bytes: int | None = None
) -> dict[str, Tensor]:
    """Read every tensor of a compressed checkpoint, in the order in which they were saved, on the CPU.

    Args:
        path: a file that :func:`rdo.save_compressed` wrote.
        dtype: data type of all floating-point tensors; default the one that each had when it was saved.
        max_output_bytes: refuse files whose tensors would take more memory than this. A few bytes can stand for any
            number of equal weights, so a limit is always in force; the default is :func:`default_output_limit`.

    Returns:
        Tensors by name. Coded ones are exactly ``symbols * step``. Tied ones are one object.

    Raises:
        CorruptCheckpointError: the file is truncated, damaged, or contradicts itself; the message names the tensor.
        UnsupportedVersionError: a newer rdo wrote it.
        CheckpointError: it is another kind of file, a coder is not installed, or it exceeds ``max_output_bytes``.
        ConfigError: it is a pickle, or ``dtype`` is no floating-point type.
        OSError: it cannot be read.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type such as torch.bfloat16, got {dtype}")
    with open_compressed(path) as file:
        file.check_output(dtype, max_output_bytes)
        return file.with_tied(dict(in_threads(lambda name: (name, file.tensor(name, dtype)), file.records)))


def load_quantized(
    path: str | os.PathLike[str], *, max_output_bytes: int | None = None
) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """Read a compressed checkpoint without dequantising: coded tensors as symbols and steps, and the raw tensors.

    A tied tensor is in the same dictionary as the one it shares, as the same object. Arguments and errors are those of
    :func:`load_compressed`.
    """
    with open_compressed(path) as file:
        file.check_output(torch.float32, max_output_bytes)
        coded = [name for name, record in file.records.items() if record.coded]
        quantized = dict(zip(coded, in_threads(file.quantized, coded), strict=True))
        raw = {name: file.tensor(name) for name, record in file.records.items() if not record.coded}
        return file.with_tied(quantized), file.with_tied(raw)


def inspect_compressed(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Say what is in a compressed checkpoint. Reads and checks the header only: neither streams nor their checksums.

    Raises:
        CheckpointError, OSError: as :func:`load_compressed`.
    """
    with open_compressed(path) as file:
        return file.info


@contextmanager
def open_compressed(path: str | os.PathLike[str]) -> Iterator[CompressedFile]:
    """Open a compressed checkpoint to read it tensor by tensor; errors are those of :func:`load_compressed`."""
    with open_safetensors(path) as container:
        yield CompressedFile(container)


class CompressedFile:
    """An open compressed checkpoint whose header has been checked.

    Attributes:
        records: the stored tensors by name; tied ones are not among them.
        owners: for every name in the order of the file, tied ones too, the name in ``records``.
        info: what is in the file, to the byte.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self.path = container.path
        self.manifest: Manifest = parse_metadata(container.metadata, str(container.path))
        self.records: dict[str, Record] = self.manifest.records()
        self.owners = {name: rec if isinstance(rec, str) else name for name, rec in self.manifest.tensors.items()}
        lengths = self._check_entries()
        self.info = build_info(self.manifest, lengths, container.file_bytes)
        self._decoders: dict[int, Decoder] = {}
        for name, record in self.records.items():
            if record.group.coder is not None and id(record.group) not in self._decoders:
                self._decoders[id(record.group)] = self._decoder(name, record.group.coder)
        self._steps = self._read_steps()

    def check_output(self, dtype: torch.dtype | None, limit: int | None) -> None:
        """Raise CheckpointError if all tensors together would take more than ``limit`` bytes in memory."""
        limit = default_output_limit(self._container.file_bytes) if limit is None else limit
        for name, record in self.records.items():
            limit -= record.numel * _target(record, dtype).itemsize
            if limit < 0:
                raise CheckpointError(
                    f"{self.path}: the tensors from {name!r} on would exceed the limit on memory; the file takes "
                    f"{self._container.file_bytes:,} bytes and declares {self.info.parameters:,} weights. If you trust "
                    "it, raise max_output_bytes (`rdo decompress --max-output-bytes`)"
                )

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One stored tensor, its memory its own; ``dtype`` converts floating-point tensors, default as saved."""
        record = self.records[name]
        if record.coded:
            return self.quantized(name).dequantize(dtype or record.group.dtype)
        stored = self._entry(name)
        self._check(name, bytes_of(stored))
        return stored.to(_target(record, dtype), copy=True)

    def quantized(self, name: str) -> QuantizedTensor:
        """Symbols and steps of one coded tensor."""
        record, stream, steps = self.records[name], bytes_of(self._entry(name)), self._steps[name]
        self._check(name, stream, bytes_of(steps))
        if not bool((steps.isfinite() & (steps > 0)).all()):
            raise self._corrupt(name, "a quantisation step is not a positive number")
        bits = Bitstream(table=stream[: record.table_bytes], payload=stream[record.table_bytes :])
        try:
            symbols = self._decoders[id(record.group)].decode(bits, record.numel)
        except RdoError as error:
            raise self._corrupt(name, str(error)) from error
        if symbols.shape != (record.numel,):
            raise self._corrupt(name, f"{symbols.size} symbols for {record.numel} weights")
        return QuantizedTensor(torch.from_numpy(symbols).reshape(record.size), steps)

    def write_plain(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write all tensors as plain safetensors, atomically, decoding one at a time. Tied ones are written each."""

        def entry(name: str, owner: str) -> Entry:
            record = self.records[owner]
            return Entry(name, _target(record, dtype), record.size, lambda: bytes_of(self.tensor(owner, dtype)))

        # transformers refuses plain weights that do not say which framework wrote them
        write_safetensors(path, [entry(name, owner) for name, owner in self.owners.items()], {"format": "pt"})

    def with_tied(self, stored: dict[str, T]) -> dict[str, T]:
        """Add the tied tensors of those in ``stored``, in the order of the file."""
        return {name: stored[owner] for name, owner in self.owners.items() if owner in stored}

    def _entry(self, name: str) -> Tensor:
        return self._container.tensor(entry_name(name, self.records[name]))

    def _check_entries(self) -> dict[str, int]:
        """Compare manifest and safetensors header; return the length of each stream."""
        codes, sizes = self._container.codes, self._container.sizes
        lengths: dict[str, int] = {}
        expected: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, record in self.records.items():
            entry, stored = entry_name(name, record), record.group.stored
            if entry not in codes:
                raise self._corrupt(name, f"the file has no entry {entry!r}")
            if stored is not None:
                expected[entry] = CODES[stored], record.size
                continue
            expected[entry] = CODES[torch.uint8], sizes[entry][:1]
            lengths[name] = sizes[entry][0] if len(sizes[entry]) == 1 else -1
            if lengths[name] < record.table_bytes:
                raise self._corrupt(name, f"{record.table_bytes} bytes of table in an entry of size {sizes[entry]}")
        if lengths:
            expected[STEPS] = CODES[torch.float32], (sum(self.records[name].steps for name in lengths),)
        for entry in sorted(expected.keys() | codes.keys()):
            found = (codes[entry], sizes[entry]) if entry in codes else "no such entry"
            if entry not in expected or found != expected[entry]:
                raise CorruptCheckpointError(
                    f"{self.path}: entry {entry!r} should be {expected.get(entry, 'absent')}, found {found}"
                )
        return lengths

    def _decoder(self, name: str, config: dict[str, object]) -> Decoder:
        try:
            coder = coder_from_config(config)
            return coder if self.manifest.version > 1 else decoder_of_version_1(coder)
        except UnknownNameError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} needs a coder that is not installed: {error}; install its package"
            ) from error
        except ConfigError as error:
            raise self._corrupt(name, str(error)) from error

    def _read_steps(self) -> dict[str, Tensor]:
        coded = {name: record.steps for name, record in self.records.items() if record.coded}
        if not coded:
            return {}
        parts = torch.split(self._container.tensor(STEPS).clone(), list(coded.values()))
        return {name: part[0] if part.numel() == 1 else part for name, part in zip(coded, parts, strict=True)}

    def _check(self, name: str, *parts: Bytes) -> None:
        if checksum(*parts) != self.records[name].crc32:
            raise self._corrupt(name, "wrong checksum: the file is damaged; fetch or write it again")

    def _corrupt(self, name: str, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self.path}: tensor {name!r}: {what}")


def _target(record: Record, dtype: torch.dtype | None) -> torch.dtype:
    own = record.group.dtype
    return dtype or own if own.is_floating_point else own
