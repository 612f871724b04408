"""What a launch needs besides its kernel: which tensors it takes, its table of chunks on the device, its types."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rdo_kernels.chunks import ADDRESSES, TENSOR, chunk_table
from rdo_kernels.types import RateFamily

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(tensors: Sequence[Tensor], family: RateFamily | None) -> bool:
    """Whether the Triton kernels know the family (None: no family is involved) and these tensors."""
    known = family is None or family.device_fn is not None
    here = all(t.is_cuda and t.dtype in _DTYPES and t.is_contiguous() for t in tensors)
    return known and here and has_triton()


@cache
def has_triton() -> bool:
    """Whether triton is installed; it has no builds for macOS and Windows."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def device_function(name: str) -> Any:
    """The Triton function of a ``"module:function"``."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


class Table:
    """Chunks on the device, and where those of each tensor begin.

    Attributes:
        chunks: int64 [rows, columns], see :mod:`rdo_kernels.chunks`.
        bounds: int64 [tensors + 1].
        aligned: whether every address is a multiple of 16, so that loads can be of 16 bytes.
    """

    def __init__(self, *groups: Sequence[Tensor]) -> None:
        chunks = torch.from_numpy(chunk_table(*groups))
        counts = torch.bincount(chunks[:, TENSOR], minlength=len(groups[0]))
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        device = groups[0][0].device
        self.rows = len(chunks)
        self.aligned = not bool((chunks[:, ADDRESSES:] % 16).any())
        self.chunks = chunks.to(device, non_blocking=True)
        self.bounds = bounds.to(device, non_blocking=True)


def by_dtype(*groups: Sequence[Tensor]) -> dict[tuple[torch.dtype, ...], list[int]]:
    """Which tensors share their data types over all groups, and so a launch."""
    rows: dict[tuple[torch.dtype, ...], list[int]] = {}
    for row, tensors in enumerate(zip(*groups, strict=True)):
        rows.setdefault(tuple(tensor.dtype for tensor in tensors), []).append(row)
    return rows


def block(size: int) -> int:
    """Weights that a program handles at once: ``size`` on a GPU; large in the interpreter, where blocks are slow."""
    return 65_536 if interpreting() else size


def laws_of(
    family: RateFamily,
    theta: Tensor,
    scales: Sequence[float],
    device: torch.device,
    divisors: Sequence[tuple[float, float]] | None = None,
) -> Tensor:
    """Rows of (theta of the device function, scale, factor, floor) for each tensor: float32 [T, D + 3]."""
    count = len(scales)
    laws = family.device_theta(theta).to(device, torch.float32).expand(count, -1)
    rest = torch.tensor([scales, [1.0] * count, [0.0] * count], dtype=torch.float32).T
    if divisors is not None:
        rest = torch.cat([rest[:, :1], torch.tensor(divisors, dtype=torch.float32)], dim=1)
    return torch.cat([laws, rest.to(device)], dim=1)


_KEPT = 32
_tables: OrderedDict[tuple[object, ...], Table] = OrderedDict()


def table(*groups: Sequence[Tensor]) -> Table:
    """The table of these groups of tensors; the last few are kept, so that a training step builds none."""
    key = tuple((item.data_ptr(), item.numel(), item.dtype) for group in groups for item in group)
    if key not in _tables:
        _tables[key] = Table(*groups)
        if len(_tables) > _KEPT:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]
