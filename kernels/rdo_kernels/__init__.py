"""Fused operations over weights: statistics, rate, gradient and steps, quantisation and entropy coding.

Weights may have any size and layout and may be float32, bfloat16, float16 or float64. Importing this package loads
neither numba nor triton; the modules that need them are loaded at first use.
"""

from rdo_kernels.operations import (
    BACKENDS,
    adamw_step,
    add_rate_gradient,
    keep_and_round,
    moments,
    proximal_step,
    rate,
    subtract_rate_gradient,
)
from rdo_kernels.quantize import Quantized, dequantize, quantize
from rdo_kernels.types import (
    APPLY,
    BOUNDS,
    LIMITS,
    MOMENTS,
    AdamW,
    FittedFamily,
    Preconditioner,
    RateFamily,
)

__all__ = [
    "APPLY",
    "BACKENDS",
    "BOUNDS",
    "LIMITS",
    "MOMENTS",
    "AdamW",
    "FittedFamily",
    "Preconditioner",
    "Quantized",
    "RateFamily",
    "adamw_step",
    "add_rate_gradient",
    "dequantize",
    "keep_and_round",
    "moments",
    "proximal_step",
    "quantize",
    "rate",
    "subtract_rate_gradient",
]
