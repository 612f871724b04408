"""Weights rounded column by column at steps that relate in one way, at any scale of them.

The columns of a matrix are rounded one after another, and the error of each is made good, as far as it can be, by the
columns that follow (GPTQ: Frantar et al., arXiv 2210.17323; the error is that of the layer's output). With a price of
bits, of the two multiples of the step next to a weight the one with the smaller error + mu * bits is taken. At high
rates the slope of the best quantiser is ``dD/dR = -2 ln 2 D`` with ``D = step^2 / 12`` for each weight, which says what
a bit is worth: mu follows from the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import rdo_kernels
from rdo.calibration import Calibration, steps_by_sensitivity
from rdo.channels import ChannelSteps
from rdo.coding_grid import CodingGrid, bits_of_counts
from rdo.compensation import Factor, compensate, in_steps
from rdo.errors import ConfigError
from rdo.quantizers import AllocatedQuantizer

_TRIALS = 12
_CLOSE, _NEAR = 2e-3, 0.9
_FINE_BITS = 7.0


@dataclass(frozen=True)
class Rounded:
    """A model's weights as integers, by name: float32, and of the weights' sizes; and their steps.

    ``channels`` has the steps of those whose rows or columns have their own; for these ``steps`` has the base.
    """

    symbols: dict[str, Tensor]
    steps: dict[str, float]
    channels: dict[str, ChannelSteps]

    def entropy_bits(self) -> float:
        """Order-0 entropy tensor by tensor, in bits a weight."""
        total = sum(_entropy_bits(symbols) for symbols in self.symbols.values())
        return total / sum(symbols.numel() for symbols in self.symbols.values())

    def weight(self, name: str) -> Tensor:
        """Symbols times their steps, as a decoder makes them; float32."""
        symbols = self.symbols[name]
        steps = self.channels[name].tensor() if name in self.channels else torch.tensor(self.steps[name])
        [values] = rdo_kernels.dequantize([symbols.to(torch.int32)], [steps.to(symbols.device)])
        return values.view(symbols.shape)

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Give the parameters of these names the rounded weights."""
        for name in self.steps:
            model.get_parameter(name).copy_(self.weight(name))

    def quantizer(self, bits: float) -> AllocatedQuantizer:
        """The steps, for ``save_compressed``: it gives the weights these symbols."""
        single = {name: step for name, step in self.steps.items() if name not in self.channels}
        return AllocatedQuantizer(single, bits, "sensitivity", channels=self.channels)


class RoundingPlan:
    """Weights, what they are multiplied with, and how their steps relate; rounded at any scale of the steps.

    Steps relate as one over the root of the tensors' mean squared gradients, as in :class:`rdo.target.SizeTarget`.

    Args:
        weights: by name; float32.
        measured: their inputs.
        sensitivity: of the tensors, by name: mean squared gradients.
        channels: steps of rows or columns relative to their tensor's, of some.
        price: what a bit counts in units of its worth at high rates; 0 rounds for the loss alone.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        measured: Calibration,
        sensitivity: Mapping[str, float],
        channels: Mapping[str, ChannelSteps],
        price: float = 0.0,
    ) -> None:
        self._weights, self._transposed, self._price = weights, measured.transposed, price
        self._channels = channels
        self._factors: dict[str, Factor] = {}
        for name, inputs in measured.inputs.items():
            own = self._channels.get(name)
            steps = inputs.new_ones(()) if own is None else own.over(weights[name].shape).to(inputs.device)
            turned = name in self._transposed and steps.ndim
            self._factors[name] = Factor(in_steps(inputs, steps.T if turned else steps))
        relative = steps_by_sensitivity([sensitivity[name] for name in weights])
        self._grid = CodingGrid(list(weights), list(weights.values()), relative, channels=self._channels)

    def search(self, goal: float, measure: Callable[[Rounded], float]) -> Rounded:
        """The finest rounding that measures at most ``goal``, met within 0.2 % from below.

        Args:
            goal, measure: bits a weight or parameter, which fall by about one for each octave that steps grow.

        Raises:
            ConfigError: no steps come near.
        """
        if not 0.0 < goal < math.inf:
            raise ConfigError(f"nothing to round at {goal:g} bits; ask for a positive number")
        self._grid.fit(min(goal, _FINE_BITS))  # rounded to nearest; of a small file, most is not weights
        low, high = -8.0, 8.0  # too many bits, few enough
        octaves, best, least, most = 0.0, None, math.inf, 0.0
        for trial in range(_TRIALS):
            rounded = self._at(octaves)
            found = measure(rounded)
            least = min(found, least)
            if found <= goal:
                high, best, most = octaves, rounded, found
                if found >= (1.0 - _CLOSE) * goal:
                    break
            else:
                low = octaves
            # At low rates an octave saves less than a bit, so strides that did not do grow.
            guess = octaves + (found - (1.0 - _CLOSE / 2) * goal) * (1.2 + 0.3 * trial)
            octaves = guess if low < guess < high else (low + high) / 2
        if best is None:
            raise ConfigError(f"no steps give {goal:g} bits, the least found was {least:.3g}; ask for more")
        if most < _NEAR * goal:
            raise ConfigError(f"no steps give {goal:g} bits, the most found was {most:.3g}; ask for less")
        return best

    def coarsest(self, allowed: Callable[[Rounded], bool]) -> Rounded:
        """The coarsest rounding that is allowed, to a twentieth of an octave, from 7 bits a weight down.

        Args:
            allowed: if it allows a rounding, it allows all finer ones.

        Raises:
            ConfigError: not even the finest is allowed.
        """
        self._grid.fit(_FINE_BITS)
        low, high, best = 0.0, _FINE_BITS + 4.0, self._at(0.0)
        if not allowed(best):
            raise ConfigError(f"even {_FINE_BITS:g} bits a weight are not allowed; allow a greater loss")
        while high - low > 0.05:
            middle = (low + high) / 2
            rounded = self._at(middle)
            if allowed(rounded):
                low, best = middle, rounded
            else:
                high = middle
        return best

    def _at(self, octaves: float) -> Rounded:
        steps = dict(zip(self._grid.names, self._grid.steps_after(octaves).tolist(), strict=True))
        channels = {name: replace(own, base=steps[name]) for name, own in self._channels.items()}

        def symbols_of(name: str, weight: Tensor) -> Tensor:
            each = channels[name].over(weight.shape).to(weight.device) if name in channels else steps[name]
            turned = name in self._transposed
            return _rounded(weight / each, self._factors.get(name), turned, self._price)

        return Rounded({name: symbols_of(name, weight) for name, weight in self._weights.items()}, steps, channels)


def _rounded(scaled: Tensor, factor: Factor | None, turned: bool, price: float) -> Tensor:
    """Symbols of a tensor in units of its steps, float32 and of its size; compensated if a factor is given."""
    lengths = _code_lengths(scaled.round())
    mu = price * 2.0 * math.log(2.0) / 12.0  # of a squared error of 1 = step^2
    if factor is None:
        return _cheaper(scaled, lengths, mu)
    matrix = scaled.T if turned else scaled
    symbols, _ = compensate(matrix, factor.at(matrix), lambda values, counts: _cheaper(values, lengths, mu / counts))
    return (symbols.T if turned else symbols).contiguous()


def _cheaper(values: Tensor, lengths: Tensor, mu: float) -> Tensor:
    """The nearest integer or the next one towards zero, whichever has less squared error + mu * bits."""
    nearest = values.round()
    if not mu:
        return nearest
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
