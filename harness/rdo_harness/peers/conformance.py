"""Whether a peer did what it was asked for: checks of what will be coded, made for every row."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rdo_harness.peers.environments import PeerError
from rdo_harness.peers.expression import Expression

_SLACK = 0.005
"""By which the sparsity of one matrix may miss the one asked for: rows and groups round it."""


def check_levels(expressions: Mapping[str, Expression], bits: int | None) -> int:
    """No block has more than ``2**bits`` different weights, if bits were asked for; returns the most that one has.

    Raises:
        PeerError: a block has more.
    """
    most = 0
    for name, expression in expressions.items():
        levels = int(expression.levels().max())
        if bits is not None and levels > 2**bits:
            raise PeerError(f"{name}: {levels} different weights share a scale, {bits} bits were asked for")
        most = max(most, levels)
    return most


def check_sparsity(weights: Mapping[str, Tensor], sparsity: float) -> float:
    """Every matrix has at least the share of zeros asked for, less half a percent; returns the least share.

    Raises:
        PeerError: one has fewer.
    """
    least = 1.0
    for name, weight in weights.items():
        zeros = float((weight == 0).float().mean())
        if zeros < sparsity - _SLACK:
            raise PeerError(f"{name}: {zeros:.2%} of the weights are zero, {sparsity:.2%} were asked for")
        least = min(least, zeros)
    return least
