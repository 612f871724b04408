"""Quantisation steps with which a compressed checkpoint has a size that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from operator import methodcaller
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rdo.checkpoint import CheckpointInfo, save_compressed
from rdo.checkpoint.writer import Coder, Compressible
from rdo.coders import make_coders
from rdo.errors import ConfigError
from rdo.modules import state_of
from rdo.quantizers import AllocatedQuantizer, Quantizer, RelativeQuantizer
from rdo.rate_distortion import STEPS_PER_OCTAVE, Curve, Point, allocate
from rdo_kernels.cpu import threads

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with how much is done, how much there is in all, and what is being done."""

_COARSE = STEPS_PER_OCTAVE // 4
_REACH = 2 * STEPS_PER_OCTAVE
"""How far from the step that suits all tensors alike that of one is looked for, and zero beyond. Every eighth step
there is tried, then all around the best."""
_TOLERANCE = 5e-4
"""How far below the size asked for, as a share of it, a file may be before another is tried."""
_TRIALS = 24
_STRIDE = 2.0
_CLOSE = 1e-9


def steps_for_bits(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    bits: float,
    *,
    distortion: str = "relative",
    importance: Mapping[str, float] | None = None,
    dead_zone: float = 0.0,
    coder: Coder | Sequence[Coder] | None = None,
    compressible: Compressible | None = None,
    raw_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> AllocatedQuantizer:
    """Find a step for each tensor such that the compressed file has at most ``bits`` bits per parameter.

    That is ``8 * file_bytes / parameters``, all of the file over all stored parameters, tied ones once: what
    ``save_compressed(..., quantizer=...).bits_per_parameter`` is with the same model and options. It comes within
    0.05 % below, unless the model is so small that no steps give that.

    Bytes are shared out by a Lagrangian: the sum over tensors of distortion + mu * coded bytes is least, with one mu
    for all. The sizes of whole files, coded but not written, then correct all steps by one factor.

    Args:
        model_or_state_dict: as for ``save_compressed``.
        bits: bits per parameter, positive.
        distortion: ``"absolute"`` for the squared error of the weights, ``"relative"`` for that over the mean square of
            their tensor.
        importance: what the distortion of a tensor counts, by its name, positive; 1 for those not named. A tied tensor
            goes by the first of its names.
        dead_zone: as for quantizers.
        coder, compressible, raw_dtype: as for ``save_compressed``. Of several coders the first measures the tensors.
        progress: hears of the tensors that are measured.

    Raises:
        ConfigError: no steps give this size, the message says which sizes there are; or an option is wrong. What
            ``save_compressed`` raises comes as it is.
    """
    if not 0.0 < bits < math.inf:
        raise ConfigError(f"bits must be a positive number of bits per parameter, got {bits}")
    if distortion not in ("absolute", "relative"):
        raise ConfigError(f"distortion must be 'absolute' or 'relative', got {distortion!r}")
    state = state_of(model_or_state_dict)
    coders = make_coders("rans" if coder is None else coder)
    counted = _checked_importance(importance or {}, state)

    def written(quantizer: Quantizer) -> CheckpointInfo:
        return save_compressed(
            state, None, quantizer=quantizer, coder=coders, compressible=compressible, raw_dtype=raw_dtype
        )

    report = progress if progress is not None else lambda *_: None
    report(0, 1, "reading the model")
    first = written(RelativeQuantizer(ratio=1.0, dead_zone=dead_zone))
    names = [tensor.name for tensor in first.tensors if tensor.kind == "coded"]
    fixed = first.file_bytes - first.table_bytes - first.payload_bytes
    budget = bits * first.parameters / 8
    if fixed >= budget:
        raise ConfigError(_too_few(bits, first, fixed))
    stored = [tensor for tensor in first.tensors if tensor.kind != "tied"]
    plain = sum(state[tensor.name].nbytes for tensor in stored)
    if not names or budget >= plain:
        raise ConfigError(
            f"{bits:g} bits per parameter are {budget:,.0f} bytes, and the plain tensors take {plain:,}, of which "
            f"{len(names)} can be coded: there is nothing to choose; ask for less, or store the model as it is"
        )

    def measured(name: str) -> Curve:
        relative, weight = distortion == "relative", counted.get(name, 1.0)
        return Curve(state[name], coders[0], relative=relative, importance=weight, dead_zone=dead_zone)

    curves = threads.share(measured, names)
    middle = _common_index(curves, budget - fixed)
    done = count(1)

    def coarse(curve: Curve) -> list[Point]:
        found = [curve.at(middle + offset) for offset in range(-_REACH, _REACH + 1, _COARSE)]
        report(next(done), 2 * len(names), "measuring tensors")
        return [*found, curve.zero()]

    def fine(item: tuple[Curve, list[Point], Point]) -> list[Point]:
        curve, found, best = item
        if best.step < curve.coarsest:
            around = curve.index_of(best.step)
            found = found + [curve.at(around + offset) for offset in range(-_COARSE, _COARSE + 1)]
        report(next(done), 2 * len(names), "measuring tensors")
        return found

    points = threads.share(coarse, curves)
    chosen = allocate(points, budget - fixed)
    chosen = allocate(threads.share(fine, list(zip(curves, points, chosen, strict=True))), budget - fixed)
    slope = 4 * sum(curve.at(middle).rate - curve.at(middle + _COARSE).rate for curve in curves)

    limits = [
        (math.log2(curve.finest / point.step), math.log2(curve.coarsest / point.step))
        for curve, point in zip(curves, chosen, strict=True)
    ]

    def scaled(octaves: float) -> AllocatedQuantizer:
        steps = {
            name: point.step * 2.0 ** min(max(octaves, finest), coarsest)
            for name, point, (finest, coarsest) in zip(names, chosen, limits, strict=True)
        }
        return AllocatedQuantizer(steps, bits, distortion, dead_zone=dead_zone)

    def size_at(octaves: float) -> int:
        report(2 * len(names), 2 * len(names), "coding a trial file")
        return written(scaled(octaves)).file_bytes

    finest, coarsest = min(limit[0] for limit in limits), max(limit[1] for limit in limits)
    octaves, size = nearest_below(size_at, budget, finest, coarsest, slope)
    if size > budget:
        raise ConfigError(_too_few(bits, first, size))
    if octaves <= finest and size < (1 - _TOLERANCE) * budget:
        raise ConfigError(
            f"{bits:g} bits per parameter are {budget:,.0f} bytes, but with the finest steps that float32 can tell "
            f"apart the file has only {size:,} ({8 * size / first.parameters:.3f} bits per parameter); ask for at "
            "most that"
        )
    return scaled(octaves)


def nearest_below(
    size_at: Callable[[float], int], budget: float, finest: float, coarsest: float, slope: float
) -> tuple[float, int]:
    """Find where a size that falls with its argument is at most, and almost, the budget.

    Args:
        size_at: bytes with all steps scaled by so many octaves.
        finest, coarsest: the least and the largest argument; 0 lies between them.
        slope: bytes that an octave saves, roughly, at 0.

    Returns:
        The argument and its size. The size is above the budget if it is so everywhere, and the argument ``finest`` if
        all sizes are below.
    """
    low, high, best = finest, coarsest, None
    tried: list[tuple[float, int]] = []
    octaves = 0.0
    for trial in range(_TRIALS):
        size = size_at(octaves)
        if tried and octaves != tried[-1][0]:
            measured = (tried[-1][1] - size) / (octaves - tried[-1][0])
            slope = measured if measured > 0 else slope
        tried.append((octaves, size))
        if size <= budget:
            high = octaves
            if best is None or (size, -octaves) > (best[1], -best[0]):
                best = (octaves, size)
            if size >= (1 - _TOLERANCE) * budget or octaves <= finest:
                break
        else:
            low = octaves
            if octaves >= coarsest:
                break
        guess = octaves + (size - (1 - _TOLERANCE / 2) * budget) / max(slope, 1.0)
        between = any(place == low for place, _ in tried) and any(place == high for place, _ in tried)
        if trial and size == tried[-2][1] and not between:  # across a plateau in strides that grow
            guess = octaves + 4 * (octaves - tried[-2][0])
        guess = min(max(guess, octaves - _STRIDE, finest), octaves + _STRIDE, coarsest)
        octaves = (low + high) / 2 if between and (trial > _TRIALS // 2 or not low < guess < high) else guess
        if between and high - low < _CLOSE:
            break
    return best or tried[-1]


def _common_index(curves: Sequence[Curve], budget: float) -> int:
    """The smallest index of the grid that fits into the budget, if all tensors have the same."""
    low = max(curve.index_of(curve.finest) for curve in curves)
    high = max(curve.index_of(curve.coarsest) for curve in curves)
    while low < high:
        middle = (low + high) // 2
        if sum(point.rate for point in threads.share(methodcaller("at", middle), curves)) <= budget:
            high = middle
        else:
            low = middle + 1
    return low


def _checked_importance(importance: Mapping[str, float], state: Mapping[str, Tensor]) -> dict[str, float]:
    for name, weight in importance.items():
        if name not in state:
            raise ConfigError(f"importance names the tensor {name!r}, which the model does not have")
        if not 0.0 < weight < math.inf:
            raise ConfigError(f"the importance of {name!r} must be a positive number, got {weight}")
    return dict(importance)


def _too_few(bits: float, info: CheckpointInfo, least: int) -> str:
    return (
        f"{bits:g} bits per parameter are {bits * info.parameters / 8:,.0f} bytes, but no steps give less than "
        f"{least:,} ({8 * least / info.parameters:.3f} bits per parameter), of which the header takes "
        f"{info.header_bytes:,} and the tensors that are not coded {info.raw_bytes:,}; ask for more, or store those in "
        "fewer bits (raw_dtype, --raw-dtype bfloat16)"
    )
