"""A step for each row or column of a tensor, cheaply told: one step, times powers of the root of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from rdo.errors import ConfigError

Axis: TypeAlias = Literal["rows", "columns"]
AXES: tuple[Axis, Axis] = ("rows", "columns")
FINEST, COARSEST = -8, 7
"""Exponents, in half octaves: four bits in a file."""


@dataclass(frozen=True, eq=False)
class ChannelSteps:
    """Steps ``base * 2^(exponent / 2)``, the product of two float32 numbers rounded to float32.

    Args:
        base: positive and finite, as float32 holds it, and so are all steps.
        axis: ``"rows"`` if each row has one (all axes but the last count rows), ``"columns"`` if each place in the last
            axis has.
        exponents: int8 [n], from -8 to 7, on the CPU.

    Raises:
        ConfigError: something else.
    """

    base: float
    axis: Axis
    exponents: Tensor

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ConfigError(f"axis must be 'rows' or 'columns', got {self.axis!r}")
        if self.exponents.dtype != torch.int8 or self.exponents.ndim != 1 or not self.exponents.numel():
            raise ConfigError("exponents must be int8 [n], and some")
        least, most = int(self.exponents.min()), int(self.exponents.max())
        if least < FINEST or most > COARSEST:
            raise ConfigError(f"exponents must lie between {FINEST} and {COARSEST}, got {least} to {most}")
        ends = steps_of(self.base, torch.tensor([least, most], dtype=torch.int8))
        if not bool((ends.isfinite() & (ends > 0)).all()):
            raise ConfigError(
                f"with the base {self.base:g} the steps, {float(ends[0]):g} to {float(ends[1]):g}, are no positive "
                "numbers of float32; take a base between 1e-37 and 1e37"
            )

    def tensor(self) -> Tensor:
        """The steps as quantisation takes them: float32, [rows] or [1, columns]."""
        steps = steps_of(self.base, self.exponents)
        return steps if self.axis == "rows" else steps.unsqueeze(0)

    def over(self, size: torch.Size) -> Tensor:
        """The steps such that they broadcast over a tensor of this size: float32 [..., 1] or [1, columns]."""
        return self.tensor().view(*size[:-1], 1) if self.axis == "rows" else self.tensor()


def steps_of(base: float, exponents: Tensor) -> Tensor:
    """Steps of exponents, int8 [n] from -8 to 7: float32 [n], whatever the base."""
    return torch.tensor(base, dtype=torch.float32) * factors()[exponents.long() - FINEST]


def channels_of(state: Mapping[str, Sequence[Any]]) -> dict[str, ChannelSteps]:
    """From lists of axis and exponents, which a state or a file of JSON holds, relative to a step of 1."""
    return {
        name: ChannelSteps(1.0, axis, torch.tensor(exponents, dtype=torch.int8))
        for name, (axis, exponents) in state.items()
    }


def factors() -> Tensor:
    """``2^(exponent / 2)`` of all exponents, ascending: float32 [16], rounded from float64."""
    exponents = torch.arange(FINEST, COARSEST + 1, dtype=torch.float64)
    return torch.exp2(exponents / 2).to(torch.float32)


def channels(size: torch.Size | tuple[int, ...], axis: Axis) -> int:
    """How many rows or columns a tensor of this size has; 0 if it has no axis or no elements."""
    count = math.prod(size)
    if not size or not count:
        return 0
    return size[-1] if axis == "columns" else count // size[-1]
