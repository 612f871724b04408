"""What a launch needs besides its kernel: which tensors it takes, its tables on the device, its types."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rdo_kernels.chunks import TENSOR, chunk_table
from rdo_kernels.types import RateFamily, Scales

Dtypes = tuple[torch.dtype, ...]
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


class Span(NamedTuple):
    """Chunks of tensors that share their data types over all groups, and so a launch."""

    dtypes: Dtypes
    first: int
    rows: int


class Geometry(NamedTuple):
    """How tensors are cut; it depends on their sizes and data types alone.

    Attributes:
        chunks: int64 [rows, 3] on the device, see :mod:`rdo_kernels.chunks`; those of a span are neighbours.
        bounds: int64 [T, 2] on the device: first row of each tensor, and the one after its last.
        counts: float64 [T] on the device, weights of each tensor.
    """

    chunks: Tensor
    bounds: Tensor
    counts: Tensor
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return self.chunks.shape[0]


@lru_cache(maxsize=32)
def _geometry(counts: tuple[int, ...], dtypes: tuple[Dtypes, ...], device: torch.device) -> Geometry:
    chunks = chunk_table(counts)
    kinds = sorted(set(dtypes), key=dtypes.index)
    kind = np.array([kinds.index(own) for own in dtypes], np.int64)
    chunks = chunks[np.argsort(kind[chunks[:, TENSOR]], kind="stable")]
    spans, first = [], 0
    for number, own in enumerate(kinds):
        rows = int((kind[chunks[:, TENSOR]] == number).sum())
        spans.append(Span(own, first, rows))
        first += rows
    bounds = np.zeros((len(counts), 2), np.int64)
    tensors, begin, pieces = np.unique(chunks[:, TENSOR], return_index=True, return_counts=True)
    bounds[tensors] = np.stack([begin, begin + pieces], axis=1)
    table = torch.from_numpy(np.ascontiguousarray(chunks)).to(device)
    sizes = torch.tensor(counts, dtype=torch.float64, device=device)
    return Geometry(table, torch.from_numpy(bounds).to(device), sizes, tuple(span for span in spans if span.rows))


def geometry(*groups: Sequence[Tensor]) -> Geometry:
    """How to cut the tensors of groups that go side by side; the last few are kept."""
    counts = tuple([tensor.numel() for tensor in groups[0]])
    dtypes = tuple(zip(*([tensor.dtype for tensor in group] for group in groups), strict=True))
    return _geometry(counts, dtypes, groups[0][0].device)


class Addresses(NamedTuple):
    """Where tensors begin: int64 [T, groups] on the device; ``aligned`` to 16 bytes, so that loads can be as wide."""

    table: Tensor
    aligned: bool


def addresses(*groups: Sequence[Tensor]) -> Addresses:
    """The addresses of groups of tensors that go side by side; the last few are kept."""
    return _addresses(
        tuple([tensor.data_ptr() for group in groups for tensor in group]), len(groups), groups[0][0].device
    )


@lru_cache(maxsize=32)
def _addresses(places: tuple[int, ...], groups: int, device: torch.device) -> Addresses:
    table = np.array(places, np.int64).reshape(groups, -1).T.copy()
    return Addresses(torch.from_numpy(table).to(device), not bool((table % 16).any()))


def block(size: int) -> int:
    """Weights that a program handles at once: ``size`` on a GPU; large in the interpreter, where blocks are slow."""
    return 65_536 if interpreting() else size


def laws_of(
    family: RateFamily,
    theta: Tensor,
    scales: Scales,
    device: torch.device,
    divisors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Rows of (theta of the device function, scale, factor, floor) for each tensor: float32 [T, D + 3]."""
    scale = torch.as_tensor(scales, dtype=torch.float64).to(device, non_blocking=True)
    laws = family.device_theta(theta.to(device, non_blocking=True)).expand(len(scale), -1)
    factor, floor = divisors if divisors is not None else (torch.ones_like(scale), torch.zeros_like(scale))
    rest = torch.stack([scale, factor.to(device), floor.to(device)], dim=1)
    return torch.cat([laws, rest], dim=1).to(torch.float32)
