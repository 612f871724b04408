"""What :mod:`rdo_kernels.operations` calls on a GPU."""

from rdo_kernels.gpu.adamw import adamw_step
from rdo_kernels.gpu.grid import keep_and_round
from rdo_kernels.gpu.rate import add_rate_gradient, moments, proximal_step, rate, subtract_rate_gradient

__all__ = [
    "adamw_step",
    "add_rate_gradient",
    "keep_and_round",
    "moments",
    "proximal_step",
    "rate",
    "subtract_rate_gradient",
]
