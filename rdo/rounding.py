"""Rounding after training that weighs the loss against bits.

The columns of a matrix are rounded one after another, and the error of each is made good, as far as it can be, by the
columns that follow (GPTQ: Frantar et al., arXiv 2210.17323; the error is that of the layer's output). Of the two
multiples of the step next to a weight the one with the smaller error + mu * bits is taken. At high rates the slope of
the best quantiser is ``dD/dR = -2 ln 2 D`` with ``D = step^2 / 12`` for each weight, which says what a bit is worth: mu
follows from the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import rdo_kernels
from rdo.calibration import Calibration, calibrate, steps_by_sensitivity
from rdo.checkpoint.writer import is_compressible
from rdo.coding_grid import CodingGrid, bits_of_counts
from rdo.compensation import compensate, compensation_factor
from rdo.errors import ConfigError
from rdo.quantizers import AllocatedQuantizer

_TRIALS = 12
_CLOSE = 2e-3


def round_to_entropy(
    model: nn.Module,
    bits: float,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    price: float = 1.0,
    compressible: Callable[[str, Tensor], bool] | None = None,
) -> AllocatedQuantizer:
    """Round a trained model's weights in place such that their symbols have an entropy of ``bits`` a weight.

    Steps relate as one over the root of the tensors' mean squared gradients, as in :class:`rdo.target.SizeTarget`.

    Args:
        bits: order-0 entropy of the symbols, tensor by tensor, in bits per coded weight; met within 0.2 % from below.
        batches, loss: calibration data, as for :func:`rdo.calibration.calibrate`.
        price: what a bit counts in units of its worth at high rates; 0 rounds for the loss alone.
        compressible: which parameters to round; default those that ``save_compressed`` codes.

    Returns:
        The steps, for ``save_compressed``: it gives the rounded weights their symbols.

    Raises:
        ConfigError: nothing to round, no calibration data, or no steps give this entropy.
    """
    choose = compressible or is_compressible
    weights = {name: p for name, p in model.named_parameters() if choose(name, p)}
    if not weights or not 0.0 < bits < math.inf or price < 0.0:
        raise ConfigError(f"nothing to round at {bits:g} bits and price {price:g} in {len(weights)} tensors")
    measured = calibrate(model, batches, loss, list(weights))
    originals = {name: weight.detach().to(torch.float32).clone() for name, weight in weights.items()}
    factors = {name: compensation_factor(matrix) for name, matrix in measured.inputs.items()}
    relative = steps_by_sensitivity([measured.sensitivity[name] for name in weights])
    grid = CodingGrid(list(weights), list(originals.values()), relative)
    grid.fit(bits)  # rounded to nearest

    def at(octaves: float) -> tuple[float, dict[str, Tensor], dict[str, float]]:
        steps = dict(zip(weights, grid.steps_after(octaves).tolist(), strict=True))
        symbols = {name: _rounded(name, originals[name], steps[name], factors, measured, price) for name in weights}
        total = sum(_entropy_bits(values) for values in symbols.values())
        return total / grid.count, symbols, steps

    symbols, steps = _search(at, bits)
    with torch.no_grad():
        for name, weight in weights.items():
            [values] = rdo_kernels.dequantize([symbols[name].to(torch.int32)], [torch.tensor(steps[name])])
            weight.copy_(values.view(weight.shape))
    return AllocatedQuantizer(steps, bits, "sensitivity")


def _search(
    at: Callable[[float], tuple[float, dict[str, Tensor], dict[str, float]]], bits: float
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Symbols and steps whose entropy is at most, and almost, the one asked for; about a bit less for each octave."""
    low, high = -8.0, 8.0  # too many bits, few enough
    octaves, best = 0.0, None
    for _ in range(_TRIALS):
        found, symbols, steps = at(octaves)
        if found <= bits:
            high, best = octaves, (symbols, steps)
            if found >= (1.0 - _CLOSE) * bits:
                break
        else:
            low = octaves
        guess = octaves + (found - (1.0 - _CLOSE / 2) * bits) * 1.2
        octaves = guess if low < guess < high else (low + high) / 2
    if best is None:
        raise ConfigError(f"no steps give an entropy of {bits:g} bits; ask for more")
    return best


def _rounded(
    name: str, weight: Tensor, step: float, factors: Mapping[str, Tensor], measured: Calibration, price: float
) -> Tensor:
    """Symbols of a tensor, float32 and of its size."""
    nearest = (weight / step).round()
    lengths = _code_lengths(nearest)
    mu = price * 2.0 * math.log(2.0) / 12.0  # of a squared error of 1 = step^2
    if name not in factors:
        return _cheaper(weight / step, lengths, mu)
    matrix = weight.T if name in measured.transposed else weight
    symbols, _ = compensate(matrix / step, factors[name], lambda values, counts: _cheaper(values, lengths, mu / counts))
    return symbols.T.contiguous() if name in measured.transposed else symbols


def _cheaper(values: Tensor, lengths: Tensor, mu: float) -> Tensor:
    """The nearest integer or the next one towards zero, whichever has less squared error + mu * bits."""
    nearest = values.round()
    towards = nearest - nearest.sign()
    bound = len(lengths) // 2
    cost = [
        (values - symbol).square() + mu * lengths[(symbol.clamp(-bound, bound) + bound).long()]
        for symbol in (nearest, towards)
    ]
    return torch.where(cost[1] < cost[0], towards, nearest)


def _code_lengths(symbols: Tensor) -> Tensor:
    """Bits of the symbols -b to b under their own frequencies, each counted once more: float32 [2 b + 1]."""
    bound = int(min(max(float(symbols.abs().max()), 1.0), 1023.0))
    counts = torch.bincount((symbols.clamp(-bound, bound) + bound).long().flatten(), minlength=2 * bound + 1) + 1.0
    return -torch.log2(counts / counts.sum())


def _entropy_bits(symbols: Tensor) -> float:
    counts = torch.unique(symbols, return_counts=True)[1]
    return float(bits_of_counts(counts.unsqueeze(0)))
