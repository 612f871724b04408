"""What the operations are given: a family of laws, and what an optimizer divides its steps by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOMENTS = ("count", "sum_abs", "sum_sq", "zeros", "max_abs")
"""Columns of what :func:`moments` returns. All but the last add up over tensors and over machines."""


class RateFamily(Protocol):
    """What the kernels need to know of a family: its elementwise training rate (bits) and the slope of it."""

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return rate in bits and d rate / d weight, both of the size and dtype of ``weight``."""
        ...

    @property
    def device_fn(self) -> str | None:
        """``"module:function"`` of a Triton function ``(w, theta) -> (bits, slope)``, or None."""
        ...

    def device_theta(self, theta: Tensor) -> Tensor:
        """What the device function takes as theta: float64 [..., D]."""
        ...


class FittedFamily(RateFamily, Protocol):
    """A family that is fitted between steps."""

    def fit(self, moments: Tensor) -> Tensor:
        """Theta, float64 [..., K], from :data:`MOMENTS`, float64 [..., 5]."""
        ...

    def paper_factor(self, theta: Tensor) -> Tensor:
        """What turns the paper's lambda into bits, float64 [...]."""
        ...

    @property
    def device_fit(self) -> str | None:
        """``"module:function"`` of a Triton function ``(moments, options) -> device theta``, or None."""
        ...

    def device_fit_options(self) -> Tensor:
        """What that function reads: float64, one axis."""
        ...


Scales = Sequence[float] | Tensor
"""Factors of the slopes of T tensors: numbers, or a tensor of size [T] on any device, which is then not waited for."""


class Preconditioner(NamedTuple):
    """What an Adam-like optimizer divides its step by: ``sqrt(second_moment) * factor + eps``."""

    second_moment: Tensor
    factor: float | Tensor
    eps: float


class AdamW(NamedTuple):
    """Settings of one step of AdamW for one tensor.

    Attributes:
        lr, beta1, beta2, eps, weight_decay: as in :class:`torch.optim.AdamW`.
        step: steps of this tensor, this one included.
        gradient_factor: multiplies gradients: -1 maximises, 1 / scale undoes a loss scale.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float
    gradient_factor: float = 1.0


def adamw_factors(settings: Sequence[AdamW] | NDArray[np.float64]) -> NDArray[np.float64]:
    """What a step multiplies by, bias corrections included, from rows of :class:`AdamW`; float64 [T, 7].

    Columns: decay, beta1, beta2, step size, factor of the second moment's root, eps, gradient factor.
    """
    lr, beta1, beta2, eps, decay, step, factor = np.asarray(settings, np.float64).reshape(-1, 7).T
    columns = 1.0 - lr * decay, beta1, beta2, lr / (1.0 - beta1**step), 1.0 / np.sqrt(1.0 - beta2**step), eps, factor
    return np.stack(columns, axis=1)


APPLY = ("gradient", "decoupled", "proximal", "preconditioned")
"""How the rate term enters a step of AdamW: in the gradient, or after the step as in the functions of their names."""

LIMITS = {torch.int8: 127, torch.int16: 32767, torch.int32: 2**30}
"""Largest absolute value of a symbol of each type."""
BOUNDS = {torch.int8: 127, torch.int16: 1023, torch.int32: 1023}
"""Largest absolute value of a symbol that a histogram has a bin for, by the type of the symbols."""
