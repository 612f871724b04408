"""Rounding after training: of some ways in which steps can relate, the one that the loss prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdo.calibration import Gradients, calibrate, mean_loss, measure_gradients
from rdo.channel_sensitivity import SHARE
from rdo.checkpoint.writer import is_compressible
from rdo.errors import ConfigError
from rdo.modules import uncompiled
from rdo.rounding_plan import Rounded, RoundingPlan


class CompensatedRounding:
    """A trained model's weights, measured once, to be rounded at any scale of the steps.

    The squared gradients of the model as it is say what small errors cost, and at few bits errors are large. So steps
    are tried that go by these, without those of rows and columns, with them, and with them as far apart as gradients
    ask for; then, in the way that was best, by the mean of these and the rounded model's, between which the loss rises
    (:class:`rdo.rounding_plan.RoundingPlan`): four searches. At a bit a weight the last is often the best, by far with
    gates that are shut or open, as a GRU has. To measure once more does not gain.

    Args:
        model: is not changed, but for its gradients, which are cleared. In evaluation mode, if it has dropout.
        batches, loss: calibration data, as for :func:`rdo.calibration.calibrate`; gone through several times.
        price: what a bit counts in units of its worth at high rates; 0 rounds for the loss alone.
        compressible: which parameters to round; default those that ``save_compressed`` codes.
        channels: whether rows or columns may have steps of their own where that saves bits; for a coder that tells them
            apart (:func:`rdo.channel_sensitivity.tells_channels`).

    Raises:
        ConfigError: nothing to round, or no calibration data.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        price: float = 0.0,
        compressible: Callable[[str, Tensor], bool] | None = None,
        channels: bool = False,
    ) -> None:
        self._model, choose = uncompiled(model), compressible or is_compressible
        self._chosen = {name: p for name, p in self._model.named_parameters() if choose(name, p)}
        if not self._chosen or price < 0.0:
            raise ConfigError(f"nothing to round at price {price:g} in {len(self._chosen)} tensors")
        self._batches = list(batches) if isinstance(batches, Iterator) else batches
        self._loss, self._price, self._by_channel = loss, price, channels
        self._measured = calibrate(self._model, self._batches, loss, list(self._chosen))
        self._weights = {name: weight.detach().to(torch.float32).clone() for name, weight in self._chosen.items()}

    def search(self, goal: float, measure: Callable[[Rounded], float]) -> Rounded:
        """Of the finest roundings that measure at most ``goal``, met within 0.2 % from below, that of the least loss.

        Args:
            goal, measure: bits a weight or parameter, which fall by about one for each octave that steps grow. The
                measure may fill the model.

        Raises:
            ConfigError: no steps come near.
        """
        return self._least(lambda plan: plan.search(goal, measure), self._loss_of)

    def coarsest(self, allowed: Callable[[Rounded], bool], measure: Callable[[Rounded], float]) -> Rounded:
        """The smallest rounding that is allowed, to a twentieth of an octave, from 7 bits a weight down.

        Args:
            allowed: if it allows a rounding, it allows all finer ones; it may fill the model.
            measure: the size that is to be small, in any unit; it may fill the model.

        Raises:
            ConfigError: not even the finest is allowed.
        """
        return self._least(lambda plan: plan.coarsest(allowed), measure)

    @torch.no_grad()
    def _least(self, find: Callable[[RoundingPlan], Rounded], cost: Callable[[Rounded], float]) -> Rounded:
        """What is found with the plan whose find costs least; the model is as it was then."""

        def attempt(gradients: Gradients, share: float, before: _Tried | None = None) -> _Tried:
            channels = gradients.within.steps(share) if share else {}
            if before is not None and share and not channels:
                return before
            found = find(RoundingPlan(self._weights, self._measured, gradients.sensitivity, channels, self._price))
            costs = cost(found)
            tried = _Tried(math.inf if math.isnan(costs) else costs, share, found)
            return tried if before is None or tried.cost < before.cost else before

        gradients = self._measured.gradients
        try:
            best = attempt(gradients, 0.0)
            with suppress(ConfigError):
                for share in (SHARE, 1.0) if self._by_channel else ():
                    best = attempt(gradients, share, best)
                best = attempt(self._gradients_at(best.rounded), best.share, best)
        finally:
            self._restore()
        return best.rounded

    def _gradients_at(self, rounded: Rounded) -> Gradients:
        """The mean of those of the model as it is and of the rounded one."""
        rounded.fill(self._model)
        with torch.enable_grad():
            return measure_gradients(
                self._model, self._batches, self._loss, self._chosen, before=self._measured.gradients
            )

    def _loss_of(self, rounded: Rounded) -> float:
        rounded.fill(self._model)
        return mean_loss(self._model, self._batches, self._loss)

    def _restore(self) -> None:
        for name, weight in self._weights.items():
            self._chosen[name].copy_(weight)


class _Tried(NamedTuple):
    """A rounding, what it costs, and how far apart steps of rows and columns are in it, 0 for none."""

    cost: float
    share: float
    rounded: Rounded
