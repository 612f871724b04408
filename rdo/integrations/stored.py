"""Tensors of a compressed checkpoint that are decoded when they are used, one at a time."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdo.checkpoint import CompressedFile, open_compressed
from rdo.checkpoint.container import CODES


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open compressed checkpoint, which loaders may take for a slice of safetensors or for a tensor.

    Attributes:
        name: one of ``file.records``.
    """

    file: CompressedFile
    name: str

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.file.records[self.name].size)

    @property
    def dtype(self) -> torch.dtype:
        return self.file.records[self.name].group.dtype

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
        return self.file.tensor(self.name)[index]

    def to(self, *args: Any, **options: Any) -> Tensor:
        """Decode, then :meth:`torch.Tensor.to`."""
        return self[...].to(*args, **options)

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
        file.check_output(None, None)
        tensors = {name: StoredTensor(file, owner) for name, owner in file.owners.items()}
        weakref.finalize(file, stack.pop_all().close)
    return tensors
