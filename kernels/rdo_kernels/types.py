"""What the operations are given: a family of laws, and what an optimizer divides its steps by."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

MOMENTS = ("count", "sum_abs", "sum_sq", "zeros", "max_abs")
"""Columns of what :func:`moments` returns. All but the last add up over tensors and over machines."""


class RateFamily(Protocol):
    """What the kernels need to know of a family: its elementwise training rate (bits) and the slope of it."""

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return rate in bits and d rate / d weight, both of the size and dtype of ``weight``."""
        ...

    def power_law(self, theta: Tensor) -> Tensor | None:
        """Return (nu, c, eps), float64 [..., 3], of a rate ``c * (|w| + eps)^nu``, or None if it has another form."""
        ...


class Preconditioner(NamedTuple):
    """What an Adam-like optimizer divides its step by: ``sqrt(second_moment) * factor + eps``."""

    second_moment: Tensor
    factor: float
    eps: float
