"""An open compressed checkpoint, read in parts. Nothing in the file is trusted before it has been checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rdo.checkpoint.container import CODES, Container, Entry, bytes_of, planned
from rdo.checkpoint.info import build_info
from rdo.checkpoint.manifest import Manifest, Record, entry_name, parse_metadata
from rdo.checkpoint.older import OlderLayout
from rdo.checkpoint.sealed import Expected, SealedLayout
from rdo.coders import EntropyCoder, coder_from_config
from rdo.coders.base import Symbols
from rdo.coders.segments import Stream
from rdo.errors import CheckpointError, CoderError, ConfigError, CorruptCheckpointError, UnknownNameError
from rdo.quantizers import QuantizedTensor

T = TypeVar("T")
_TOGETHER = 1 << 15
"""Weights that are multiplied at once by the steps of their columns: torch leaves so few to one thread."""


def default_output_limit(file_bytes: int) -> int:
    """Bytes of tensors that a file of this length may expand to unless the caller says otherwise.

    One gibibyte, or 256 times the file where that is more: float32 weights at an eighth of a bit each.
    """
    return max(2**30, 256 * file_bytes)


class CompressedFile:
    """An open compressed checkpoint whose header has been checked.

    Whatever decodes raises CheckpointError, before it does, if all tensors of the file together would take more than
    ``max_output_bytes`` in the data type that is asked for: see :func:`rdo.load_compressed`.

    Attributes:
        records: the stored tensors by name; tied ones are not among them.
        owners: for every name in the order of the file, tied ones too, the name in ``records``.
        info: what is in the file, to the byte.
    """

    def __init__(self, container: Container, max_output_bytes: int | None = None) -> None:
        self._container = container
        self._limit = default_output_limit(container.file_bytes) if max_output_bytes is None else max_output_bytes
        self._permitted: set[torch.dtype | None] = set()
        self.path = container.path
        self.manifest: Manifest = parse_metadata(container.metadata, str(container.path), sealed=container.sealed)
        self.records: dict[str, Record] = self.manifest.records()
        self.sizes = {name: record.numel for name, record in self.records.items()}
        self.owners = {name: rec if isinstance(rec, str) else name for name, rec in self.manifest.tensors.items()}
        version = self.manifest.version
        self._layout: SealedLayout | OlderLayout = (
            SealedLayout(container, self.records) if version > 2 else OlderLayout(container, self.records, version)
        )
        lengths = self._check_entries()
        self.info = build_info(self.manifest, lengths, container.file_bytes)
        self._coders: dict[int, EntropyCoder] = {}
        for name, record in self.records.items():
            if record.group.coder is not None and id(record.group) not in self._coders:
                self._coders[id(record.group)] = self._coder(name, record.group.coder)

    def check_output(self, dtype: torch.dtype | None = None) -> None:
        """Raise CheckpointError if all tensors, in this data type, would take more memory than allowed."""
        if dtype in self._permitted:
            return
        left = self._limit
        for name, record in self.records.items():
            left -= record.numel * target_dtype(record, dtype).itemsize
            if left < 0:
                raise CheckpointError(
                    f"{self.path}: the tensors from {name!r} on would exceed the limit on memory; the file takes "
                    f"{self._container.file_bytes:,} bytes and declares {self.info.parameters:,} weights. If you trust "
                    "it, raise max_output_bytes (`rdo decompress --max-output-bytes`)"
                )
        self._permitted.add(dtype)

    def tensor(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """One stored tensor, its memory its own.

        Args:
            dtype: converts floating-point tensors, default as saved.
            device: where it is wanted, default the CPU. A GPU decodes it itself where it can.
        """
        from rdo.checkpoint.on_device import device_of, tensors_on

        if device is not None and device_of(device).type != "cpu":
            return tensors_on(self, [name], dtype, device_of(device))[name]
        record = self.records[name]
        return self._elements(name, 0, record.numel, dtype).reshape(record.size)

    def rows(self, name: str, begin: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        """``tensor(name, dtype)[begin:end]``, from the segments alone in which these rows are.

        Raises:
            ConfigError: the tensor has no such rows.
        """
        size = self.records[name].size
        if not size or not 0 <= begin <= end <= size[0]:
            raise ConfigError(f"tensor {name!r} of size {list(size)} has no rows {begin} to {end}")
        length = self.sizes[name] // max(size[0], 1)
        return self._elements(name, begin * length, end * length, dtype).reshape(end - begin, *size[1:])

    def quantized(self, name: str) -> QuantizedTensor:
        """Symbols and steps of one coded tensor."""
        self.check_output(torch.float32)
        record = self.records[name]
        with self.explained(name):
            stream, steps = self.stream(name)
            symbols = stream.symbols(0, record.numel)
        size = () if len(steps) == 1 else (1, -1) if record.group.channels == "columns" else (-1,)
        return QuantizedTensor(torch.from_numpy(symbols).reshape(record.size), steps.reshape(size))

    def check(self, name: str) -> None:
        """Read and decode one tensor without keeping it.

        Raises:
            CorruptCheckpointError: it is damaged.
        """
        self.check_output()
        with self.explained(name):
            if self.records[name].kind != "raw":
                self.stream(name)[0].each(0, self.sizes[name], lambda at, symbols: None)
            else:
                for _ in self._layout.raw(name, 0, self._container.length(entry_name(name, self.records[name]))):
                    pass

    def is_whole(self) -> bool | None:
        """Whether the file has the hash that was written at its end; None if none was, before format version 3."""
        return self._container.is_whole() if self._container.sealed else None

    def _elements(self, name: str, begin: int, end: int, dtype: torch.dtype | None) -> Tensor:
        """Elements ``begin`` to ``end`` of a tensor in C order, [end - begin]."""
        self.check_output(dtype)
        record = self.records[name]
        out = torch.empty(end - begin, dtype=target_dtype(record, dtype))
        if begin == end:
            return out
        with self.explained(name):
            if record.group.stored is not None:
                width = record.group.stored.itemsize
                for at, piece in self._layout.raw(name, begin * width, end * width):
                    values = torch.from_numpy(piece.copy()).view(record.group.stored)
                    out[at // width - begin :][: values.numel()] = values
                return out
            stream, steps = self.stream(name)
            store = _store(record, steps)
            stream.each(begin, end, lambda at, symbols: store(symbols, out[at - begin :][: symbols.size], at))
        return out

    def stream(self, name: str) -> tuple[Stream, Tensor]:
        """What decodes a coded tensor, and its steps, [steps].

        Raises:
            CoderError: the head of its stream is damaged.
        """
        stream, found = self._layout.stream(name, self._coders[id(self.records[name].group)])
        steps = torch.from_numpy(found)
        if not bool((steps.isfinite() & (steps > 0)).all()):
            raise CoderError("a quantisation step is not a positive number")
        return stream, steps

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn a CoderError into a CorruptCheckpointError that says in which tensor of which file it was."""
        try:
            yield
        except CoderError as error:
            raise self._corrupt(name, str(error)) from error

    def write_plain(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write all tensors as plain safetensors, atomically, decoding one at a time. Tied ones are written each."""

        def entry(name: str, owner: str) -> Entry:
            record = self.records[owner]
            return Entry(name, target_dtype(record, dtype), record.size, lambda: [bytes_of(self.tensor(owner, dtype))])

        # transformers refuses plain weights that do not say which framework wrote them
        planned([entry(name, owner) for name, owner in self.owners.items()], {"format": "pt"}).write(path)

    def with_tied(self, stored: dict[str, T]) -> dict[str, T]:
        """Add the tied tensors of those in ``stored``, in the order of the file."""
        return {name: stored[owner] for name, owner in self.owners.items() if owner in stored}

    def _check_entries(self) -> dict[str, int]:
        """Compare manifest and safetensors header; return the length of each stream."""
        codes, sizes = self._container.codes, self._container.sizes
        lengths: dict[str, int] = {}
        expected: Expected = self._layout.extra_entries()
        for name, record in self.records.items():
            entry, stored = entry_name(name, record), record.group.stored
            if entry not in codes:
                raise self._corrupt(name, f"the file has no entry {entry!r}")
            if stored is not None:
                expected[entry] = CODES[stored], record.size
                continue
            expected[entry] = CODES[torch.uint8], sizes[entry][:1]
            lengths[name] = sizes[entry][0] if len(sizes[entry]) == 1 else -1
            least = self._layout.least_bytes(record)
            if lengths[name] < least:
                raise self._corrupt(name, f"a stream of {least} bytes or more in an entry of size {sizes[entry]}")
        for entry in sorted(expected.keys() | codes.keys(), key=lambda entry: (entry.startswith("::"), entry)):
            found = (codes[entry], sizes[entry]) if entry in codes else "no such entry"
            if entry not in expected or found != expected[entry]:
                raise CorruptCheckpointError(
                    f"{self.path}: entry {entry!r} should be {expected.get(entry, 'absent')}, found {found}"
                )
        return lengths

    def _coder(self, name: str, config: dict[str, object]) -> EntropyCoder:
        try:
            return coder_from_config(config)
        except UnknownNameError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} needs a coder that is not installed: {error}; install its package"
            ) from error
        except ConfigError as error:
            raise self._corrupt(name, str(error)) from error

    def _corrupt(self, name: str, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self.path}: tensor {name!r}: {what}")


Store = Callable[[Symbols, Tensor, int], None]
"""Writes what symbols stand for, of which the first is number ``at`` of its tensor, into a tensor of as many."""


def _store(record: Record, steps: Tensor) -> Store:
    if record.kind == "lossless":
        return _store_bits(record.group.dtype)
    return _store_columns(steps) if record.group.channels == "columns" else _store_weights(steps, record.numel)


def _store_weights(steps: Tensor, count: int) -> Store:
    """What writes the weights of symbols of ``count``, the same number of which share each step."""
    from rdo_kernels.cpu.weights import store_part
    from rdo_kernels.streams import Rows

    rows = Rows(steps, count // len(steps))
    return lambda symbols, out, at: store_part(symbols, out, rows, at)


def _store_columns(steps: Tensor) -> Store:
    """What writes the weights of symbols, each place in the last axis having a step."""
    repeated = steps.repeat(1 + -(-_TOGETHER // len(steps)))  # from any column on it has steps for a block

    def store(symbols: Symbols, out: Tensor, at: int) -> None:
        for begin in range(0, symbols.size, _TOGETHER):
            found = torch.from_numpy(symbols[begin : begin + _TOGETHER])
            out[begin : begin + _TOGETHER] = found * repeated[(at + begin) % len(steps) :][: len(found)]

    return store


def _store_bits(dtype: torch.dtype) -> Store:
    """What writes the numbers of ``dtype`` whose bits the symbols are."""
    bits = 8 * dtype.itemsize

    def store(symbols: Symbols, out: Tensor, at: int) -> None:
        if bits < 32 and int(symbols.view(np.uint32).max(initial=0)) >> bits:
            raise CoderError(f"a symbol has more than the {bits} bits of a number")
        out.copy_(torch.from_numpy(symbols.astype(f"<i{dtype.itemsize}")).view(dtype))

    return store


def target_dtype(record: Record, dtype: torch.dtype | None) -> torch.dtype:
    """The data type of a tensor that is read; ``dtype`` is for floating-point ones."""
    own = record.group.dtype
    return dtype or own if own.is_floating_point else own
