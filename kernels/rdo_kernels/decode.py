"""Decoding of segmented streams straight into tensors: symbols, or weights, the symbols times their steps.

Any number of streams at once: on a GPU those of a data type share a launch, with a warp for each segment. A weight is
``float32(symbol) * float32(step)``, rounded to the type of its tensor.

Nothing in a payload is trusted: damaged segments decode to symbols of no meaning, and then StreamError is raised.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rdo_kernels.operations import BACKENDS
from rdo_kernels.streams import MAX_SEGMENT, ExpGolombStream, RansStream, Rows, Stream, StreamError

__all__ = ["ExpGolombStream", "RansStream", "StreamError", "decode_exp_golomb", "decode_rans"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decode_rans(
    streams: Sequence[RansStream],
    outs: Sequence[Tensor],
    steps: Sequence[Tensor | None],
    *,
    backend: str | None = None,
) -> None:
    """Decode each stream into its tensor.

    Args:
        outs: contiguous tensors of any size, of as many elements as there are symbols: int32 for symbols; bfloat16,
            float16 or float32 for weights. Payloads and steps are on the same device.
        steps: for each tensor its float32 steps, size [] or [rows], contiguous, one for each equal part of it in order;
            None for symbols.
        backend: as in :mod:`rdo_kernels.operations`; all but ``"triton"`` decode on the CPU.

    Raises:
        StreamError: streams are malformed, and nothing was decoded; or damaged, and the others were.
        ValueError: tensors do not go together.
    """
    _decode("rans", streams, outs, steps, backend)


def decode_exp_golomb(
    streams: Sequence[ExpGolombStream],
    outs: Sequence[Tensor],
    steps: Sequence[Tensor | None],
    *,
    backend: str | None = None,
) -> None:
    """Decode each stream into its tensor; everything else is as in :func:`decode_rans`."""
    _decode("exp_golomb", streams, outs, steps, backend)


def _decode(
    kind: str,
    streams: Sequence[Stream],
    outs: Sequence[Tensor],
    steps: Sequence[Tensor | None],
    backend: str | None,
) -> None:
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    rows = []
    for number, (stream, out, own) in enumerate(zip(streams, outs, steps, strict=True)):
        rows.append(_rows(number, stream.payload, out, own))
        try:
            stream.check(out.numel())
        except StreamError as error:
            raise StreamError(f"stream {number}: {error}", (number,)) from None
    groups: dict[tuple[str, torch.device], list[int]] = {}
    for number, out in enumerate(outs):
        groups.setdefault((_module(kind, out, backend), out.device), []).append(number)
    damaged: dict[int, int] = {}
    for (name, _), numbers in groups.items():
        module: Any = importlib.import_module(name)
        flags = module.decode(*([items[number] for number in numbers] for items in (streams, outs, rows)))
        # One transfer for all flags: each would wait for the GPU.
        sound = torch.split(torch.cat(flags).cpu(), [len(own) for own in flags])
        damaged |= {number: int((own == 0).sum()) for number, own in zip(numbers, sound, strict=True) if not own.all()}
    torch.autograd.graph.increment_version(outs)
    if damaged:
        counts = ", ".join(f"{damaged[number]} of stream {number}" for number in sorted(damaged))
        raise StreamError(f"segments are truncated or damaged: {counts}", tuple(sorted(damaged)))


def _module(kind: str, out: Tensor, backend: str | None) -> str:
    from rdo_kernels.gpu.launch import has_triton

    if backend == "triton" or (backend is None and out.is_cuda and has_triton()):
        return f"rdo_kernels.gpu.{kind}"
    return f"rdo_kernels.cpu.{kind}_segments"


def _rows(number: int, payload: Tensor, out: Tensor, steps: Tensor | None) -> Rows | None:
    """Check what goes with a stream; its steps and how many symbols share one, or None."""
    if payload.dtype != torch.uint8 or payload.ndim != 1 or not payload.is_contiguous() or payload.device != out.device:
        raise ValueError(f"stream {number}: the payload must be contiguous uint8 [bytes] on {out.device}")
    if not out.is_contiguous() or out.dtype not in (torch.int32, *DTYPES):
        raise ValueError(f"stream {number}: cannot decode into {out.dtype}, or not contiguous")
    if (steps is None) != (out.dtype == torch.int32):
        raise ValueError(f"stream {number}: weights need steps, and int32 symbols have none")
    if steps is None:
        return None
    parts = steps.numel()
    if steps.dtype != torch.float32 or steps.ndim > 1 or not steps.is_contiguous() or steps.device != out.device:
        raise ValueError(f"stream {number}: steps must be contiguous float32 of size [] or [rows] on {out.device}")
    if out.numel() == 0:
        return Rows(steps, 1)
    if parts == 0 or out.numel() % parts or (parts > 1 and out.numel() // parts > MAX_SEGMENT):
        raise ValueError(f"stream {number}: {parts} steps cannot share {out.numel()} symbols equally")
    return Rows(steps, out.numel() // parts)
