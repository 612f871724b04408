"""What the checks share: their registry, weights, laws and tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy import EntropyModel
from rdo.entropy.gaussian import Gaussian
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.entropy.laplace import Laplace
from rdo.entropy.lp import Lp
from rdo.entropy.pareto import Pareto

Check = Callable[[torch.device, str | None], None]
CHECKS: dict[str, Check] = {}

LAWS: list[tuple[EntropyModel, list[float]]] = [
    (GeneralizedGaussian(eps=0.01), [0.7, 0.03]),
    (GeneralizedGaussian(eps=1e-6), [0.3, 0.001]),
    (GeneralizedGaussian(eps=1.0), [1.3, 0.05]),
    (Lp(p=0.5), [0.02]),
    (Laplace(), [0.04]),
    (Gaussian(), [0.05]),
    (Pareto(), [0.03]),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COUNTS = (0, 1, 2, 97, 1009, 65_536, 65_537, 140_003)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative; two units in the last place of the 16-bit types, since Triton's interpreter truncates."""
SUM = 1e-5
"""Relative error allowed to sums of float32 rates."""


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def weights(count: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Weights of both signs with some exact zeros."""
    generator = torch.Generator().manual_seed(seed + 1000 * count)
    values = 0.05 * torch.randn(count, generator=generator)
    values[::7] = 0.0
    return values.to(dtype).to(device)


def theta_of(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float) -> None:
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance * scale)


def same_sum(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected.double().cpu().reshape(found.shape), rtol=SUM, atol=1e-12)


def same_moments(found: Tensor, tensors: Sequence[Tensor], backend: str | None) -> None:
    """What a step gathered from the weights that it wrote is what a pass over them finds."""
    torch.testing.assert_close(found, rdo_kernels.moments(tensors, backend=backend), rtol=1e-14, atol=0)
