"""A lambda that needs no tuning: the rate's gradient has a set length relative to the loss's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import rdo_kernels
from rdo.constraint import RateConstraint
from rdo.errors import ConfigError

_MEMORY = 0.8
"""Weight of earlier measurements of the length of the loss's gradient."""
_EVERY = 10
"""Optimizer steps between two measurements."""
_SAMPLE = 1 << 14
"""Weights of a tensor whose slopes are measured, or all if it has fewer: some 1 % of error for one, less for all."""


class Pressure:
    """Sets a constraint's lambda to ``share * 4^(1 - bits) * |dD/dw| / |dR/dw|``, lengths over all covered weights.

    In units of loss per bit per parameter the same training wants lambdas that differ a hundredfold between models; in
    this unit, which also an optimizer's step size and the number of weights do not enter, they differ little.

    A bit is worth what it takes from the loss: the part of that which is due to rounding falls to a quarter with each
    bit more, and its derivative with it (``dD/dR = -2 ln 2 D``).

    Args:
        constraint: with a scalar tensor as its lambda.
        share: length of the rate's gradient relative to that of the loss, at one bit a weight.

    Raises:
        ConfigError: the share is no number of 0 or more.
    """

    def __init__(self, constraint: RateConstraint, share: float) -> None:
        if not 0.0 <= share < math.inf:
            raise ConfigError(f"pressure must be a number of 0 or more, got {share}")
        self._constraint, self.share = constraint, share
        self._gradient = torch.zeros((), dtype=torch.float64, device=constraint.parameters[0].device)

    @torch.no_grad()
    def before_step(self, step: int, bits: float) -> None:
        """Every ten steps measure both gradients and set lambda; the parameters have their gradients of the loss.

        Args:
            step: number of optimizer steps before.
            bits: that a weight is to take.
        """
        if step % _EVERY:
            return
        lam = self._constraint.lam_tensor
        assert lam is not None
        shards = self._constraint.shards
        both = torch.stack([squares_of(shards.known_gradients(), lam), self._slope_squares(lam)], dim=1)
        squares, slopes = shards.sums(both).sum(0).unbind()
        known = self._gradient > 0.0
        self._gradient = torch.where(known, _MEMORY * self._gradient + (1 - _MEMORY) * squares, squares)
        share = self.share * 4.0 ** (1.0 - bits)
        lam.copy_(share * self._constraint.count * (self._gradient / slopes.clamp(min=1e-300)).sqrt())

    def _slope_squares(self, like: Tensor) -> Tensor:
        """Sums over the weights here of the squared slope of their rate, from a sample of each; float64 [T]."""
        constraint, parts = self._constraint, [part.detach() for part in self._constraint.shards.parts()]
        samples = [_sample(part) for part in parts]
        slopes = [torch.zeros_like(sample, dtype=torch.float32) for sample in samples]
        ones = like.new_ones(len(parts), dtype=torch.float64)
        rdo_kernels.add_rate_gradient(samples, slopes, constraint.entropy_model, constraint.fit(), ones)
        shares = [part.numel() / max(sample.numel(), 1) for part, sample in zip(parts, samples, strict=True)]
        return squares_of(slopes, like) * torch.tensor(shares, dtype=torch.float64, device=like.device)

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


def _sample(weights: Tensor) -> Tensor:
    """Weights at even distances in memory order, from all columns alike, in one axis."""
    apart = max(weights.numel() // _SAMPLE, 1)
    while math.gcd(apart, *weights.shape[-1:]) > 1:  # a scalar has no last axis
        apart -= 1
    return weights.reshape(-1)[::apart].contiguous()


def squares_of(tensors: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Sum of the squares of each one's elements, float64 [T]; 0 for None."""
    nothing = like.new_zeros((), dtype=torch.float64)
    norms = [None if x is None else torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors]
    return torch.stack([nothing if norm is None else norm.to(torch.float64).square() for norm in norms])
