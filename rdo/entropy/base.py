"""What an entropy model is: a law of weights, fitted from a few sums, with a training rate and a code length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rdo.errors import ConfigError
from rdo.registry import Registry

LN2 = 0.6931471805599453
MAX_CODE_LENGTH_BITS = 996.0
"""Code lengths saturate here, where a cell's probability (1e-300) leaves float64."""


@dataclass(frozen=True)
class EntropyModel(ABC):
    """A law of weights that is symmetric about zero. Knows no coder and no quantizer.

    A family is a frozen dataclass whose fields are its JSON-able hyperparameters. Its fitted parameters travel
    separately as ``theta``: float64, last axis in the order of :attr:`theta_names`, leading axes free.
    """

    name: ClassVar[str]
    theta_names: ClassVar[tuple[str, ...]]
    device_fn: ClassVar[str | None] = None
    """``"module:function"`` of a @triton.jit function ``(w, theta) -> (rate, slope)``, or None.

    ``w`` is float32, theta a tuple of float32 scalars: what :meth:`device_theta` returns. Without one, the family runs
    through :meth:`rate_and_slope` in cache blocks on every device.
    """

    device_fit: ClassVar[str | None] = None
    """``"module:function"`` of a @triton.jit function that does what :meth:`fit` and :meth:`device_theta` do, or None.

    It takes the five moments, a tuple of float64 blocks, and a pointer to :meth:`device_fit_options`. Without one, the
    law is fitted by :meth:`fit` on the device, in a dozen small launches a step instead of one.
    """

    @abstractmethod
    def fit(self, moments: Tensor) -> Tensor:
        """Return theta, float64 [..., K], from :data:`rdo_kernels.MOMENTS`, float64 [..., 5].

        Defined for every input: no weights, one weight, all zero, constant.
        """

    @abstractmethod
    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training rate in bits above the mode and its derivative, both like ``weight``; theta is [K].

        The slope is 0 at w = 0, and equals the autograd derivative of the rate elsewhere.
        """

    @abstractmethod
    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return P(W <= x) in float64, the size of ``x``; accurate in the lower tail."""

    def device_theta(self, theta: Tensor) -> Tensor:
        """What the device function takes as theta, float64 [..., D]; hyperparameters may be among it."""
        return theta

    def paper_factor(self, theta: Tensor) -> Tensor:
        """What turns the paper's lambda (of ``mean (|w|+eps)^nu``) into loss per bit per parameter; float64 [...].

        Raises:
            ConfigError: the family has no such unit.
        """
        raise ConfigError(f"entropy model {self.name!r} has no lambda in the paper's units; give lam in bits")

    def device_fit_options(self) -> Tensor:
        """What :attr:`device_fit` reads: float64, one axis; hyperparameters may be among it."""
        return torch.zeros(1, dtype=torch.float64)

    def surrogate(self, weight: Tensor, theta: Tensor) -> Tensor:
        """Training rate in bits above the mode, elementwise; eager ground truth, differentiable in ``weight``."""
        return self.rate_and_slope(weight, theta)[0]

    def slope(self, weight: Tensor, theta: Tensor) -> Tensor:
        """Derivative of :meth:`surrogate`, elementwise, in bits per unit of weight."""
        return self.rate_and_slope(weight, theta)[1]

    def interval_bits(self, symbols: Tensor, step: float, theta: Tensor) -> Tensor:
        """Return ``-log2 P(cell)`` >= 0 of quantised weights, float64; symbol s has the cell ``(s -+ 1/2) * step``."""
        low = -(symbols.abs().to(torch.float64) + 0.5) * step
        # The lower tail is accurate where the upper one has been rounded to 1.
        mass = self.cdf(low + step, theta) - self.cdf(low, theta)
        return -torch.log2(mass.clamp(min=2.0**-MAX_CODE_LENGTH_BITS, max=1.0))

    def config(self) -> dict[str, Any]:
        """A JSON-able description from which :func:`entropy_model_from_config` builds an equal model."""
        return {"name": self.name, **asdict(self)}


ENTROPY_MODELS: Registry[type[EntropyModel]] = Registry(
    "entropy model", package="rdo.entropy", group="rdo.entropy_models"
)


def entropy_model_from_config(config: dict[str, Any]) -> EntropyModel:
    """Build an entropy model from its registered name and options.

    Raises:
        UnknownNameError: no family has this name.
        ConfigError: an option is unknown or out of range.
    """
    options = dict(config)
    family = ENTROPY_MODELS.get(str(options.pop("name", "")))
    try:
        return family(**options)
    except TypeError as error:
        raise ConfigError(f"bad options for entropy model {family.name!r}: {error}") from error
