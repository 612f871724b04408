"""An entropy family as another package would add it: one class, one device function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from rdo.entropy import EntropyModel

LN2 = 0.6931471805599453


@triton.jit
def logistic(w, theta):  # type: ignore[no-untyped-def]
    tail = tl.exp2(-tl.abs(w) / theta[0] * 1.4426950408889634)
    sign = (w > 0).to(tl.float32) - (w < 0).to(tl.float32)
    bits = tl.abs(w) / theta[0] * 1.4426950408889634 + 2 * (tl.log2(1 + tail) - 1)
    return bits, sign * (1 - tail) / (1 + tail) / theta[0] * 1.4426950408889634


@dataclass(frozen=True)
class Logistic(EntropyModel):
    name: ClassVar[str] = "logistic"
    theta_names: ClassVar[tuple[str, ...]] = ("scale",)
    device_fn: ClassVar[str | None] = "tests.kernels.logistic:logistic"

    def fit(self, moments: Tensor) -> Tensor:
        return (3 * moments[..., 2] / moments[..., 0]).sqrt().div(torch.pi).clamp(min=1e-12).unsqueeze(-1)

    def rate_and_slope(self, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        half = weight / (2 * theta[..., 0])
        bits = 2 * (torch.nn.functional.softplus(2 * half.abs()) - half.abs() - LN2) / LN2
        return bits, torch.tanh(half) / (theta[..., 0] * LN2)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        return torch.sigmoid(x.to(torch.float64) / theta[..., 0])
