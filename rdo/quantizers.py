"""Scalar quantizers: a weight becomes an integer symbol times a step.

A *row* is the smallest trailing block of a tensor's axes that holds at least 64 weights: the last axis of a matrix or
of packed experts, everything after the first axis of a convolution. It depends on the size alone, so a reader needs no
side information.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor

import rdo_kernels
from rdo.channels import ChannelSteps, channels
from rdo.errors import ConfigError, NonFiniteWeightsError, SymbolOverflowError

MAX_SYMBOL = 2**30
_MIN_ROW = 64
_BLOCK = 1 << 22


def row_length(size: torch.Size | tuple[int, ...]) -> int:
    """Number of weights in a row of a tensor of this size (see the module's docstring); at least 1."""
    length = 1
    for extent in reversed(size):
        length *= extent
        if length >= _MIN_ROW:
            break
    return max(length, 1)


@dataclass(frozen=True)
class QuantizedTensor:
    """Integer symbols and the steps that turn them back into weights.

    Attributes:
        symbols: int32, the size of the weights, absolute value at most 2**30.
        steps: float32, size [] for one step, [rows] for a step per row, or [1, columns] for one per place in the last
            axis.
    """

    symbols: Tensor
    steps: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return ``symbols * step``, computed in float32 and rounded to ``dtype``; size of the symbols."""
        return rdo_kernels.dequantize([self.symbols], [self.steps], dtype)[0]


class SymbolCounts(NamedTuple):
    """Symbols in ascending order, int [K], and how often each occurs, int64 [K], all > 0."""

    symbols: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Quantizer(ABC):
    """Chooses steps for a tensor and rounds its weights to them.

    Args:
        dead_zone: extra half-width of the zero cell, in steps: weights with ``|w| < (0.5 + dead_zone) * step`` become
            zero, all others round to the nearest symbol (ties to even).
    """

    name: ClassVar[str]
    dead_zone: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0.0 <= self.dead_zone < 1e6:
            raise ConfigError(f"dead_zone must be 0 or more (in steps), got {self.dead_zone}")

    @abstractmethod
    def steps(self, weight: Tensor, name: str = "tensor") -> Tensor:
        """Return the float32 steps for the float32 tensor of this name: size [], [rows] or, if :meth:`channel_steps`
        tells them, [1, columns].

        Weights are checked while they are rounded, so some may be NaN or infinite; such a tensor's steps are not used.
        """

    def channel_steps(self, weight: Tensor, name: str = "tensor") -> ChannelSteps | None:
        """What :meth:`steps` returns if a file can tell it in four bits for each row or column; None if not."""
        return None

    def quantize(self, weight: Tensor, name: str = "tensor") -> QuantizedTensor:
        """Quantise a floating-point tensor of any size; ``name`` is for messages.

        Raises:
            ConfigError: the tensor does not hold floating-point numbers.
            NonFiniteWeightsError: it holds NaN or infinity.
            SymbolOverflowError: a symbol would exceed 2**30 in absolute value.
        """
        values, steps = self._values_and_steps(weight, name)
        found = rdo_kernels.quantize([values], [steps], self.dead_zone, count=False)
        if int(found.lost):
            self._refuse(values, steps, name)
        return QuantizedTensor(found.symbols[0], steps)

    def counts(self, weight: Tensor, name: str = "tensor") -> Tensor:
        """How often each symbol occurs in what :meth:`quantize` gives: int64 [K], all > 0, by ascending symbol."""
        return self.histogram(weight, name).counts

    def histogram(self, weight: Tensor, name: str = "tensor") -> SymbolCounts:
        """Which symbols occur in what :meth:`quantize` gives, and how often.

        Raises:
            As :meth:`quantize`.
        """
        values, steps = self._values_and_steps(weight, name)
        counts = rdo_kernels.quantize([values], [steps], self.dead_zone, dtype=torch.int16).counts
        assert counts is not None
        if int(counts[0, -1]):  # some have no bin
            return SymbolCounts(*torch.unique(self.quantize(weight, name).symbols, return_counts=True))
        bins = counts[0].nonzero().flatten()
        return SymbolCounts(bins - counts.shape[1] // 2 + 1, counts[0][bins])

    def _values_and_steps(self, weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
        if not weight.is_floating_point():
            raise ConfigError(f"{name}: cannot quantise {weight.dtype}; only floating-point tensors have a rate")
        values = weight.detach().to(torch.float32)
        return values, self.steps(values, name)

    @staticmethod
    def _refuse(values: Tensor, steps: Tensor, name: str) -> NoReturn:
        """Say why some values have no symbol."""
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise NonFiniteWeightsError(
                f"{name}: {bad} of {values.numel()} weights are NaN or infinite; repair or exclude the tensor first"
            )
        raise SymbolOverflowError(
            f"{name}: the largest weight {float(values.abs().max()):.4g} over the step {float(steps.min()):.4g} "
            f"exceeds 2^30; use a step of at least {float(values.abs().max()) / MAX_SYMBOL:.3g}"
        )

    def config(self) -> dict[str, Any]:
        """A JSON-able description: how the steps are chosen, and whether zero has a wider cell."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class UniformQuantizer(Quantizer):
    """One absolute step for every tensor, 2**-8 in the paper (Algorithm 2: ``Q = round(2^n * w)``)."""

    name: ClassVar[str] = "uniform"
    step: float = 2.0**-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-30 <= self.step <= 1e30:
            raise ConfigError(f"step must be a positive number (1e-30 to 1e30), got {self.step}")

    def steps(self, weight: Tensor, name: str = "tensor") -> Tensor:
        return torch.tensor(self.step, dtype=torch.float32, device=weight.device)


@dataclass(frozen=True)
class RelativeQuantizer(Quantizer):
    """A step of ``ratio`` times the root mean square of the tensor, or of each row of it.

    A tensor or row of zeros gets the step 1.0.
    """

    name: ClassVar[str] = "relative"
    ratio: float = 0.5
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-30 <= self.ratio <= 1e30:
            raise ConfigError(f"ratio must be a positive number, got {self.ratio}")
        if self.granularity not in ("tensor", "row"):
            raise ConfigError(f"granularity must be 'tensor' or 'row', got {self.granularity!r}")

    def steps(self, weight: Tensor, name: str = "tensor") -> Tensor:
        length = row_length(weight.shape) if self.granularity == "row" else max(weight.numel(), 1)
        rows = weight.reshape(weight.numel() // length, length)
        count = max(len(rows), 1) if self.granularity == "tensor" else len(rows)
        squares = torch.zeros(count, dtype=torch.float64, device=weight.device)
        # In float64, but not all at once: that would take several times the memory of the weights.
        for first in range(0, len(rows), max(_BLOCK // length, 1)):
            for begin in range(0, length, _BLOCK):
                part = rows[first : first + max(_BLOCK // length, 1), begin : begin + _BLOCK]
                squares[first : first + len(part)] += part.to(torch.float64).square().sum(1)
        steps = ((squares / length).sqrt() * self.ratio).to(torch.float32)
        # A step that underflows float32 would divide by zero; such rows are zeros for any practical purpose.
        steps = torch.where(steps >= torch.finfo(torch.float32).tiny, steps, torch.ones_like(steps))
        return steps if self.granularity == "row" else steps[0]


@dataclass(frozen=True)
class AllocatedQuantizer(Quantizer):
    """A step for each tensor by its name, as :func:`rdo.allocation.steps_for_bits` finds them, or steps for its rows or
    columns.

    Args:
        step_of: the step of each tensor, positive. A file holds them beside the streams, not in its description.
        bits: the bits per parameter that they were found for.
        distortion: ``"absolute"`` or ``"relative"``, the error that they make small.
        channels: the steps of tensors whose rows or columns have each their own; these need none in ``step_of``.
    """

    name: ClassVar[str] = "allocated"
    step_of: Mapping[str, float] = field(hash=False)
    bits: float
    distortion: str
    channels: Mapping[str, ChannelSteps] = field(default_factory=dict, hash=False)

    @property
    def names(self) -> frozenset[str]:
        """The tensors that have steps."""
        return frozenset(self.step_of) | frozenset(self.channels)

    def steps(self, weight: Tensor, name: str = "tensor") -> Tensor:
        told = self.channel_steps(weight, name)
        if told is not None:
            return told.tensor().to(weight.device)
        if name not in self.step_of:
            raise ConfigError(
                f"{name}: no step was allocated to this tensor; allocate steps for the model that is quantised, with "
                "the same `compressible`"
            )
        return torch.tensor(self.step_of[name], dtype=torch.float32, device=weight.device)

    def channel_steps(self, weight: Tensor, name: str = "tensor") -> ChannelSteps | None:
        """The steps of this tensor's rows or columns, if it has them.

        Raises:
            ConfigError: the tensor has another number of rows or columns.
        """
        told = self.channels.get(name)
        if told is not None and len(told.exponents) != channels(weight.shape, told.axis):
            raise ConfigError(
                f"{name}: {len(told.exponents)} steps for the {channels(weight.shape, told.axis)} {told.axis} of a "
                f"tensor of size {list(weight.shape)}; find steps for the model that is quantised"
            )
        return told

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "bits": self.bits, "distortion": self.distortion, "dead_zone": self.dead_zone}


_QUANTIZERS: dict[str, type[Quantizer]] = {"uniform": UniformQuantizer, "relative": RelativeQuantizer}


def quantizer_from_config(config: dict[str, Any]) -> Quantizer:
    """Build a quantizer equal to that whose :meth:`Quantizer.config` this is.

    Raises:
        ConfigError: the name or an option is not known, or the quantizer was allocated, of which the steps are needed.
    """
    options = dict(config)
    kind = _QUANTIZERS.get(str(options.pop("name", "")))
    if kind is None:
        raise ConfigError(f"unknown quantizer in {config}; known: {', '.join(sorted(_QUANTIZERS))}")
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"bad quantizer options {config}: {error}") from error
