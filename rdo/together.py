"""Several optimizers that share a model's parameters, such as Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Together:
    """Reads like one optimizer (:class:`rdo.optimizer_state.OptimizerLike`), and says when a round of steps is done.

    In a round each optimizer steps once, in any order. What comes between gradients and steps belongs before the first
    of these, what follows a step after the last.

    Args:
        optimizers: one or more; their parameters' gradients are all there when the first of a round steps.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self._waiting = list(optimizers)

    def begins(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's step, which is about to come, is the first of a round."""
        if not any(optimizer is other for other in self._waiting):
            late = ", ".join(type(other).__name__ for other in self._waiting)
            warnings.warn(
                f"{type(optimizer).__name__} steps again before {late}: with several optimizers each must step once in "
                "every round, and weights are not rounded before the last has. If a GradScaler left a step out, this "
                "passes",
                stacklevel=4,
            )
            self._waiting = list(self.optimizers)
        return len(self._waiting) == len(self.optimizers)

    def ends(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's step, which is done, was the last of a round."""
        self._waiting = [other for other in self._waiting if other is not optimizer]
        if self._waiting:
            return False
        self._waiting = list(self.optimizers)
        return True

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in their order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """What they keep of each parameter."""
        return {parameter: kept for optimizer in self.optimizers for parameter, kept in optimizer.state.items()}

    @property
    def grad_scale(self) -> Tensor | None:
        """What a GradScaler multiplied gradients by and leaves to a fused optimizer to divide out."""
        return self._first("grad_scale")

    @property
    def found_inf(self) -> Tensor | None:
        """More than 0 if a GradScaler found infinite gradients and a fused optimizer is about to do nothing."""
        return self._first("found_inf")

    def _first(self, attribute: str) -> Tensor | None:
        found = (getattr(optimizer, attribute, None) for optimizer in self.optimizers)
        return next((value for value in found if value is not None), None)
