"""Parameters, gradients and single steps for the tests of the rate constraint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rdo.constraint import RateConstraint

DTYPE = torch.float64


def parameters(*sizes: tuple[int, ...], dtype: torch.dtype = DTYPE) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    scales = (0.05, 0.2, 0.01)
    return [
        (f"layer.{i}", nn.Parameter((torch.randn(size, generator=generator) * scales[i % 3]).to(dtype)))
        for i, size in enumerate(sizes)
    ]


def set_gradients(pairs: list[tuple[str, nn.Parameter]], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in pairs:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)


def snapshot(pairs: list[tuple[str, nn.Parameter]]) -> list[Tensor]:
    return [parameter.detach().clone() for _, parameter in pairs]


def step(constraint: RateConstraint, optimizer: torch.optim.Optimizer) -> None:
    constraint.before_step(optimizer)
    optimizer.step()
    constraint.after_step(optimizer)
