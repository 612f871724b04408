"""Quantisation in one pass over memory: weights to integer symbols and their histogram, and symbols to weights.

Each tensor goes to the fastest backend that takes it; ``backend`` names one: ``"triton"`` (contiguous tensors on a
GPU), ``"compiled"`` (contiguous tensors on a CPU) or ``"blocks"`` (everything). All give the same bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdo_kernels.types import BOUNDS

_BACKENDS = {
    "triton": "rdo_kernels.gpu.quantize",
    "compiled": "rdo_kernels.cpu.quantize",
    "blocks": "rdo_kernels.cpu.quantize_blocks",
}


class Quantized(NamedTuple):
    """Symbols of some tensors and how often each occurs. B is 127 for int8, 1023 for wider symbols (``BOUNDS``).

    Attributes:
        symbols: contiguous integer tensors of the sizes of the weights; 0 where a weight has no symbol.
        counts: int64 [T, 2B + 2]: ``counts[t, s + B]`` is how often the symbol s occurs in a tensor, the last column
            counts all weights without a bin of their own: symbols beyond +-B and weights without a symbol.
            None if nothing was to be counted.
        lost: int64 [T], number of weights without a symbol: NaN, infinity, and those more than ``LIMITS`` steps from
            zero (127 for int8, 32,767 for int16, 2**30 for int32). With ``lost`` 0 the symbols are exact.
    """

    symbols: list[Tensor]
    counts: Tensor | None
    lost: Tensor


def quantize(
    weights: Sequence[Tensor],
    steps: Sequence[Tensor],
    dead_zone: float = 0.0,
    *,
    dtype: torch.dtype = torch.int32,
    count: bool = True,
    backend: str | None = None,
) -> Quantized:
    """Round weights to multiples of steps: the symbol is ``w / step``, divided in float32, rounded half to even.

    Args:
        weights: floating-point tensors on one device; those wider than float32 are rounded to it first.
        steps: for each tensor float32 steps, positive and finite: one; one for each row, a row being as many
            neighbours in memory order as there are weights for each step; or [1, C], one for each place in the last
            axis (a column).
        dead_zone: extra half-width of the zero cell, in steps: ``|w / step| < 0.5 + dead_zone`` gives 0.
        dtype: of the symbols: int8, int16 or int32.
        count: whether to count the symbols.

    Returns:
        Symbols, counts and lost weights, on the weights' device. All are independent of backend and of threads.

    Raises:
        ValueError: an option is unknown, or the steps do not divide a tensor into rows.
    """
    if dtype not in BOUNDS:
        raise ValueError(f"symbols must be int8, int16 or int32, got {dtype}")
    symbols = [_room(weight, dtype) for weight in weights]
    weights, steps = _without_columns(weights, steps)
    steps = _checked(weights, steps)
    device = weights[0].device if weights else torch.device("cpu")
    counts = torch.zeros(len(weights), 2 * BOUNDS[dtype] + 2, dtype=torch.int64, device=device) if count else None
    lost = torch.zeros(len(weights), dtype=torch.int64, device=device)
    for module, rows in _groups(weights, backend):
        if len(rows) == len(weights):  # nearly always, and histograms of many tensors are large
            return Quantized(symbols, counts, module.quantize(weights, symbols, steps, dead_zone, counts).to(device))
        own = None if counts is None else counts[rows]
        tensors = [[group[row] for row in rows] for group in (weights, symbols, steps)]
        lost[rows] = module.quantize(*tensors, dead_zone, own).to(device)
        if counts is not None and own is not None:
            counts[rows] = own
    return Quantized(symbols, counts, lost)


def dequantize(
    symbols: Sequence[Tensor],
    steps: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    backend: str | None = None,
) -> list[Tensor]:
    """Return ``symbols * step``, computed in float32 and rounded to ``dtype``; contiguous, of the symbols' sizes.

    Args:
        symbols: int8, int16 or int32 tensors; of those beyond 2**24 the nearest float32 is taken.
        steps: as for :func:`quantize`.

    Raises:
        ValueError: an option is unknown, the symbols are of another type, or the steps do not divide a tensor into
            rows.
    """
    if any(symbol.dtype not in BOUNDS for symbol in symbols):
        raise ValueError(f"symbols must be int8, int16 or int32, got {', '.join(str(s.dtype) for s in symbols)}")
    symbols = [symbol.contiguous() for symbol in symbols]
    if any(map(has_columns, steps)):
        return _dequantized_columns(symbols, steps, dtype, backend)
    weights = [_room(symbol, dtype) for symbol in symbols]
    steps = _checked(symbols, steps)
    for width in {symbol.dtype for symbol in symbols}:
        own = [row for row, symbol in enumerate(symbols) if symbol.dtype == width]
        for module, rows in _groups([weights[row] for row in own], backend):
            tensors = [[group[own[row]] for row in rows] for group in (symbols, steps, weights)]
            module.dequantize(*tensors)
    return weights


def has_columns(step: Tensor) -> bool:
    """Whether steps, float32 [1, C], are those of columns."""
    return step.ndim == 2 and step.shape[0] == 1 and step.shape[1] > 1


def check_columns(index: int, tensor: Tensor, step: Tensor) -> None:
    """Raise ValueError unless a tensor, which the index names, has as many columns as there are steps, [1, C]."""
    if tensor.ndim == 0 or tensor.shape[-1] != step.shape[1]:
        raise ValueError(f"tensor {index}: steps of {step.shape[1]} columns for the size {list(tensor.shape)}")


def _without_columns(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Divide by the steps of columns here: what is left has the step 1, and rounds to the same bits."""
    if len(weights) != len(steps) or not any(map(has_columns, steps)):
        return weights, steps
    pairs = [
        (_divided(index, weight, step), step.new_ones(())) if has_columns(step) else (weight, step)
        for index, (weight, step) in enumerate(zip(weights, steps, strict=True))
    ]
    return [weight for weight, _ in pairs], [step for _, step in pairs]


def _divided(index: int, weight: Tensor, step: Tensor) -> Tensor:
    check_columns(index, weight, step)
    return weight.detach().to(torch.float32) / step.to(weight.device)


def _dequantized_columns(
    symbols: Sequence[Tensor], steps: Sequence[Tensor], dtype: torch.dtype, backend: str | None
) -> list[Tensor]:
    """:func:`dequantize` where some have steps of columns: by these they are multiplied here, in float32."""
    found: list[Tensor] = []
    for index, (symbol, step) in enumerate(zip(symbols, steps, strict=True)):
        if not has_columns(step):
            found += dequantize([symbol], [step], dtype, backend=backend)
            continue
        check_columns(index, symbol, step)
        (whole,) = dequantize([symbol], [step.new_ones(())], torch.float32, backend=backend)
        found.append(whole.mul_(step.to(whole.device)).to(dtype))
    return found


def _room(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of this size; takes half as long as ``torch.empty`` with a size and a device."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def _checked(tensors: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
    """The steps as the backends want them: float32, one (of size [1] or []) or [rows], beside their tensor."""
    if len(tensors) != len(steps):
        raise ValueError(f"{len(tensors)} tensors need as many tensors of steps, got {len(steps)}")
    for index, (tensor, step) in enumerate(zip(tensors, steps, strict=True)):
        count, rows = tensor.numel(), step.numel()
        if count and (rows == 0 or count % rows):
            raise ValueError(f"tensor {index}: {rows} steps do not divide {count} weights into rows")
    return [_flat(step, tensor) for tensor, step in zip(tensors, steps, strict=True)]


def _flat(step: Tensor, tensor: Tensor) -> Tensor:
    step = step.detach()
    if step.dtype != torch.float32 or step.device != tensor.device:
        step = step.to(tensor.device, torch.float32)
    # A scalar is left as it is: nothing reads its shape, and each call of torch counts where tensors are small.
    return step if step.ndim == 0 else step.reshape(-1).contiguous()


def _groups(weights: Sequence[Tensor], backend: str | None) -> Iterator[tuple[Any, list[int]]]:
    """Each backend that has work, with the indices of the tensors that go there."""
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(_BACKENDS)}")
    from rdo_kernels.cpu import quantize as compiled
    from rdo_kernels.gpu import launch

    groups: dict[str, list[int]] = {}
    for index, weight in enumerate(weights):
        name = backend
        if name is None and compiled.takes(weight):
            name = "compiled"
        elif name is None:
            name = "triton" if launch.takes([weight], None) else "blocks"
        groups.setdefault(name, []).append(index)
    for name, rows in groups.items():
        yield importlib.import_module(_BACKENDS[name]), rows
