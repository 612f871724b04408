"""The law of some weights, fitted again as they change, without waiting for a GPU; they may be sharded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy import EntropyModel
from rdo.errors import NonFiniteWeightsError
from rdo.sharding import SUMS, Shards
from rdo_kernels.alarm import Alarm, capturing
from rdo_kernels.fused import Watch


class FittedLaw:
    """A family fitted to named weights: one law for all of them, or one for each tensor.

    Attributes:
        theta: what :meth:`fit` found last, float64 [K], or [T, K] for a law per tensor.
    """

    def __init__(self, family: EntropyModel, names: Sequence[str], shards: Shards, *, pool: bool) -> None:
        self.theta: Tensor | None = None
        self._family, self._names, self._shards, self._pool = family, names, shards, pool
        self._moments: Tensor | None = None
        self._watch = Watch(shards.parts)
        self._alarm = Alarm(1, shards.parts()[0].device)

    def fit(self, step: int) -> Tensor:
        """Fit to the weights as they are now and return theta; ``step`` is for the message of an error.

        The moments that the last step gathered are used if no weight changed since, as autograd counts changes (writes
        to ``.data`` escape it).

        Raises:
            NonFiniteWeightsError: a weight is NaN or infinite: a law fitted to it would ruin all others. On a GPU the
                error comes with a later fit; until then :meth:`sound` keeps such a law from doing harm.
        """
        if self._moments is None or self._watch.changed():
            self._moments = rdo_kernels.moments(self._shards.parts())
        total = self._shards.total(self._moments, pool=self._pool)
        self._check(self._moments, total, step)
        self.theta = self._family.fit(total)
        return self.theta

    def changed(self) -> bool:
        """Whether a weight changed since :meth:`mark` or :meth:`follow`."""
        return self._watch.changed()

    def mark(self) -> None:
        """Take the weights as they are now for those that the last fit saw."""
        self._watch.mark()

    def follow(self, moments: Tensor) -> None:
        """Take the moments of the weights, float64 [T, 5], from a step that has just written them."""
        self._moments = moments
        self._watch.mark()

    def forget(self) -> None:
        """Take the weights for new ones: a checkpoint was loaded, perhaps in ways that autograd does not count."""
        self._moments = None

    def sound(self, values: Tensor, otherwise: float = 1.0) -> Tensor:
        """The values, or another number for each if weights on a GPU are not finite, which the host learns later."""
        return torch.where(self._alarm.flags[0] == 0, values, otherwise) if values.is_cuda else values

    def non_finite(self, rows: Sequence[int], step: int) -> NonFiniteWeightsError:
        """The error that says which of the weights are not finite."""
        bad = [self._names[row] for row in rows] or ["on another rank"]
        return NonFiniteWeightsError(
            f"{', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}: weights are NaN or infinite at step {step}; "
            "the training diverged: go back to a checkpoint, and lower the learning rate or lambda"
        )

    def _check(self, moments: Tensor, total: Tensor, step: int) -> None:
        held = capturing(moments.device)
        late = not held and self._alarm.rung()
        # Of the total, so that all processes stop at the same step.
        self._alarm.flags.copy_(total[..., :SUMS].isfinite().all().logical_not())
        if not held:
            self._alarm.send()
        if late or (not moments.is_cuda and self._alarm.rung()):
            bad = moments.isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
            if bad or self._shards.sharded:
                raise self.non_finite(bad, step)
