"""A lambda that needs no tuning: the rate's gradient has a set length relative to the loss's."""

from __future__ import annotations

import torch
from torch import Tensor

import rdo_kernels
from rdo.constraint import RateConstraint

_MEMORY = 0.8
"""Weight of earlier measurements of the length of the loss's gradient."""


class Pressure:
    """Sets a constraint's lambda to ``share * |dD/dw| / |dR/dw|``, lengths over all covered weights.

    In units of loss per bit per parameter the same training wants lambdas that differ a hundredfold between models; in
    this unit, which also an optimizer's step size and the number of weights do not enter, they differ little.

    Args:
        constraint: with a scalar tensor as its lambda.
        share: length of the rate's gradient relative to that of the loss.
    """

    def __init__(self, constraint: RateConstraint, share: float) -> None:
        self._constraint, self.share = constraint, share
        self._gradient = torch.zeros((), dtype=torch.float64, device=constraint.parameters[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Measure both gradients and set lambda; call when the parameters have their gradients of the loss."""
        lam = self._constraint.lam_tensor
        assert lam is not None
        squares = sum_of_squares([p.grad for p in self._constraint.parameters if p.grad is not None], lam)
        known = self._gradient > 0.0
        self._gradient = torch.where(known, _MEMORY * self._gradient + (1 - _MEMORY) * squares, squares)
        slopes = self._slope_squares(lam).clamp(min=1e-300)
        lam.copy_(self.share * self._constraint.count * (self._gradient / slopes).sqrt())

    def _slope_squares(self, like: Tensor) -> Tensor:
        """Sum over all weights of the squared slope of their rate."""
        constraint = self._constraint
        theta = constraint.fit()
        one, total = like.new_ones(1, dtype=torch.float64), like.new_zeros((), dtype=torch.float64)
        largest = max(constraint.parameters, key=lambda parameter: parameter.numel())
        buffer = torch.empty(largest.numel(), dtype=torch.float32, device=largest.device)
        for row, parameter in enumerate(constraint.parameters):
            slope = buffer[: parameter.numel()].zero_().view(parameter.shape)
            own = theta[row] if theta.ndim == 2 else theta
            rdo_kernels.add_rate_gradient([parameter], [slope], constraint.entropy_model, own, one)
            total += sum_of_squares([slope], like)
        return total

    def state_dict(self) -> dict[str, float]:
        """The length measured so far, squared, and lambda."""
        lam = self._constraint.lam_tensor
        assert lam is not None
        return {"gradient": float(self._gradient), "lam": float(lam)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from :meth:`state_dict`."""
        lam = self._constraint.lam_tensor
        assert lam is not None
        self._gradient.fill_(state["gradient"])
        lam.fill_(state["lam"])


def sum_of_squares(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Sum of the squares of all elements, float64 []."""
    total = like.new_zeros((), dtype=torch.float64)
    for tensor in tensors:
        total += torch.linalg.vector_norm(tensor, dtype=torch.float32).to(torch.float64).square()
    return total
