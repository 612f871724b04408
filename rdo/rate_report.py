"""What a constrained training step saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RateReport:
    """What the last constrained step saw. All of it describes the weights before that step.

    Attributes:
        step: constrained optimizer steps so far.
        lam: lambda of that step, in the constraint's units.
        parameters: N, the number of covered weights.
        surrogate_bits_per_parameter: the mean training rate, in bits above the mode of the law.
        entropy_bits_per_parameter: with a size target, order-0 entropy of the weights as they were last rounded.
        theta: fitted parameters of the law by name; the mean over tensors when the law is fitted per tensor.
    """

    step: int
    lam: float
    parameters: int
    surrogate_bits_per_parameter: float
    theta: dict[str, float]
    entropy_bits_per_parameter: float | None = None
