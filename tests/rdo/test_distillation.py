"""The distilled loss against its formula in float64, and what it is at the ends of its ranges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rdo.distillation import distilled_loss
from rdo.errors import ConfigError

SIZE = (4, 7, 11)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Position by position, class by class."""
    total = 0.0
    for mine, own in zip(student.reshape(-1, SIZE[-1]).tolist(), teacher.reshape(-1, SIZE[-1]).tolist(), strict=True):
        p, q = ([math.exp(x / temperature) for x in row] for row in (own, mine))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / (student.numel() / SIZE[-1])


@pytest.mark.parametrize(("share", "temperature"), [(0.3, 1.0), (0.5, 2.0), (1.0, 0.7)])
def test_the_formula(share: float, temperature: float) -> None:
    found = distilled_loss(torch.tensor(1.7), logits(0), logits(1), share=share, temperature=temperature)
    expected = (1 - share) * 1.7 + share * temperature**2 * divergence(logits(0), logits(1), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_only_what_counts_counts() -> None:
    counted = torch.rand(SIZE[:2], generator=torch.Generator().manual_seed(2)) < 0.5
    poisoned = torch.where(counted.unsqueeze(-1), logits(0), torch.nan)
    found = distilled_loss(torch.tensor(0.0), poisoned, logits(1), counted, share=1.0)
    chosen = [x[counted].reshape(1, -1, SIZE[-1]) for x in (logits(0), logits(1))]
    assert float(found) == pytest.approx(divergence(*chosen, 1.0), rel=1e-5)


def test_the_gradient_is_that_of_the_softened_probabilities() -> None:
    """T^2 * KL has the gradient T * (q - p) in each logit, over the number of positions; the teacher gets none."""
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    distilled_loss(torch.tensor(0.0), student, teacher, share=1.0, temperature=2.0).backward()
    q, p = (torch.softmax(x.detach().double() / 2.0, -1) for x in (student, teacher))
    assert student.grad is not None
    torch.testing.assert_close(student.grad.double(), 2.0 * (q - p) / (SIZE[0] * SIZE[1]), rtol=1e-4, atol=1e-7)
    assert teacher.grad is None


def test_a_model_that_answers_as_its_teacher_loses_nothing() -> None:
    assert float(distilled_loss(torch.tensor(2.0), logits(0), logits(0), share=0.25)) == pytest.approx(1.5)
    assert float(distilled_loss(torch.tensor(2.0), logits(0), logits(1), share=0.0)) == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "from 0 to 1, got 1.5"),
        ({"temperature": 0.0}, "positive number, got 0"),
        ({"counted": torch.ones(4, dtype=torch.bool)}, r"`counted` is of size \[4\], the positions are \[4, 7\]"),
        ({"counted": torch.zeros(4, 7, dtype=torch.bool)}, "no position that counts"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distilled_loss(torch.tensor(1.0), logits(0), logits(1), **options)  # type: ignore[arg-type]


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(ConfigError, match=r"size \[4, 7, 5\], the model's \[4, 7, 11\]"):
        distilled_loss(torch.tensor(1.0), logits(0), logits(1)[..., :5])
