"""The count sketch: lengths and angles of tensors of any size, and gradients of low rank."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rdo.sketch import CountSketch

SKETCH = CountSketch(torch.device("cpu"))
Make = Callable[[int, int, torch.Generator], Tensor]


def dense(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def one_rank(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.outer(dense(rows, 1, generator)[:, 0], dense(1, columns, generator)[0])


def heavy(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return dense(rows, columns, generator) ** 5


@pytest.mark.parametrize("make", [dense, one_rank, heavy])
@pytest.mark.parametrize("size", [(3, 5), (300, 256), (384, 384), (1537, 771)])
def test_squared_lengths_are_right_on_the_mean(make: Make, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    found = []
    for seed in range(40):
        tensor = make(*size, generator)
        found.append(float(SKETCH(tensor, seed).square().sum() / tensor.to(torch.float64).square().sum()))
    ratios = torch.tensor(found)
    assert float(ratios.std()) < 0.2
    assert float(ratios.mean()) == pytest.approx(1.0, abs=0.08)


def test_sums_are_linear_and_different_tensors_do_not_agree() -> None:
    one, other = (dense(700, 391, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    torch.testing.assert_close(SKETCH(one + other, 7), SKETCH(one, 7) + SKETCH(other, 7), rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(SKETCH(one.to(torch.bfloat16), 7), SKETCH(one.to(torch.bfloat16).float(), 7))
    for left, right in ((SKETCH(one, 7), SKETCH(other, 7)), (SKETCH(one, 7), SKETCH(one, 8))):
        assert abs(float(torch.cosine_similarity(left, right, dim=0))) < 0.25


def test_every_element_counts_once() -> None:
    for count in (1, 255, 65_536, 65_537, 70_001):
        one = torch.zeros(count)
        one[-1] = 3.0
        assert SKETCH(one, 0).abs().sort().values[-2:].tolist() == [0.0, 3.0]
