"""Tensors of a compressed checkpoint that are decoded when they are used, where they are used."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor

from rdo.checkpoint import CompressedFile, open_compressed
from rdo.checkpoint.container import CODES
from rdo.checkpoint.on_device import batches, decodes_on, tensors_on

CPU = torch.device("cpu")


class StoredFile:
    """An open compressed checkpoint. A GPU decodes neighbours together, so some of them before they are asked for."""

    def __init__(self, file: CompressedFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._ahead: dict[str, Tensor] = {}
        self._left = set(file.sizes)

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """One stored tensor in the data type that was saved, its memory its own; on ``device`` or, sooner, another."""
        if not decodes_on(device):
            return self.file.tensor(name, device=device)
        with self._lock:
            if name not in self._ahead:
                self._left.add(name)
                following = dropwhile(lambda other: other != name, self.file.sizes)
                together = next(batches({other: self.file.sizes[other] for other in following if other in self._left}))
                self._left -= set(together)
                self._ahead |= tensors_on(self.file, together, None, device)
            return self._ahead.pop(name)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open compressed checkpoint, which loaders may take for a slice of safetensors or for a tensor.

    Attributes:
        name: one of ``source.file.records``.
    """

    source: StoredFile
    name: str

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.source.file.records[self.name].size)

    @property
    def dtype(self) -> torch.dtype:
        return self.source.file.records[self.name].group.dtype

    def get_shape(self) -> list[int]:
        """The size, as a slice of safetensors gives it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The data type, as a slice of safetensors names it: ``"BF16"``, ``"F32"``."""
        return CODES[self.dtype]

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> Tensor:
        """Decode, then index; on the CPU, in memory of its own, in the data type that was saved.

        Raises:
            CorruptCheckpointError: the tensor is damaged.
        """
        return self.source.tensor(self.name, CPU)[index]

    def to(self, *args: Any, **options: Any) -> Tensor:
        """Decode, then :meth:`torch.Tensor.to`."""
        return self[...].to(*args, **options)

    def on(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> Tensor:
        """Decode on a device, default the CPU, then convert to a data type, default the one that was saved."""
        where = CPU if device is None else torch.device(device)
        return self.source.tensor(self.name, where).to(device=where, dtype=dtype)

    def on_meta(self) -> Tensor:
        """A tensor of the same size and data type that holds nothing."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def stored_tensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a compressed checkpoint by name, tied ones under each of their names, in the order of the file.

    The file stays open as long as one of them lives.

    Raises:
        CheckpointError, OSError: as :func:`rdo.load_compressed`; damage to a tensor shows when it is decoded.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_compressed(path))
        file.check_output()
        source = StoredFile(file)
        tensors = {name: StoredTensor(source, owner) for name, owner in file.owners.items()}
        weakref.finalize(source, stack.pop_all().close)
    return tensors
