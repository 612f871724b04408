"""A training that ends at a quality that was asked for, in the smallest file: the size follows a measured loss.

The loss is measured again and again. While it is below the limit, the size falls; while it is above, the size grows, in
larger strides as the learning rate falls: at first the loss says little of where the training will end. The last word
has a search over the steps of the trained model (:meth:`QualityTarget.land`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rdo.constraint import RateConstraint
from rdo.control import largest_rate
from rdo.errors import ConfigError
from rdo.optimizer_state import OptimizerLike
from rdo.sharding import mean_over_processes
from rdo.target import SizeTarget

_BEGIN_BITS = 2.0
_GAIN, _STRIDE = 8.0, 0.4
"""Octaves that the size moves for a loss of twice the limit, by proportion, and at most at once; half as many at most
when it has to turn back, and up to 1.2 times as many when it goes on (Rprop: Riedmiller and Braun, ICNN 1993)."""
_SETTLING = 0.1
"""Share of its peak to which the learning rate falls before the size stops falling: weights could not follow it."""
_LEAST, _MOST = 0.02, 8.0
"""Bits a weight, entropy, between which the size moves."""
_REACH, _CLOSE = 4.0, 0.02
"""Octaves of the steps, either way, within which the last search looks, and how closely."""


class QualityTarget(SizeTarget):
    """Keeps a measured loss at a limit, by the size, while an optimizer trains a model.

    Args:
        max_loss: the largest value of ``evaluate`` allowed at the end, positive.
        evaluate: measures the model, lower is better, on data that the training does not see: the mean loss, or the
            share of wrong answers. It is called in evaluation mode without gradients. With several processes each
            may take a share of the data: the mean of what they return counts.
        every: optimizer steps between two measurements.
        begin_bits: entropy of the weights that the training begins with, in bits a weight.
        options: of :class:`rdo.target.SizeTarget`; ``hardening`` is 0 here unless one says otherwise, since the loss of
            soft weights says little of the file's.

    Attributes:
        bits_per_parameter: ``begin_bits``, and after :meth:`land` those of the file, rounded (the file names them).

    Raises:
        ConfigError: the limit is not positive, ``every`` not 1 or more, or an option is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        constraint: RateConstraint,
        *,
        max_loss: float,
        evaluate: Callable[[nn.Module], float],
        every: int = 10,
        begin_bits: float = _BEGIN_BITS,
        **options: Any,
    ) -> None:
        if not 0.0 < max_loss < math.inf:
            raise ConfigError(f"max_loss must be a positive number, got {max_loss}")
        if every < 1:
            raise ConfigError(f"every must be 1 or more optimizer steps, got {every}")
        super().__init__(model, constraint, bits_per_parameter=begin_bits, **{"hardening": 0, **options})
        self.max_loss, self.every = max_loss, every
        self.loss: float | None = None
        """What was measured last."""
        self._module, self._evaluate = model, evaluate
        self._peak, self._share = 0.0, 1.0
        self._stride, self._error = _STRIDE, 0.0

    @torch.no_grad()
    def before_step(self, optimizer: OptimizerLike) -> None:
        rate = largest_rate(optimizer)
        self._peak = max(self._peak, rate)
        self._share = rate / self._peak if self._peak else 1.0
        super().before_step(optimizer)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if self.grid is not None and self.step % self.every == 0:
            self._follow(self._measured() / self.max_loss - 1.0)

    def _follow(self, error: float) -> None:
        """Move the size by what the loss, relative to the limit, is too high."""
        turned = error * self._error < 0.0
        self._stride, self._error = min(self._stride * (0.5 if turned else 1.2), _STRIDE), error
        fall = self._stride if self._share >= _SETTLING else 0.0
        octaves = min(max(_GAIN * error, -fall), self._stride * (1.0 - self._share))
        if octaves:  # from the size that was measured: the steps may still be on their way to the one wanted last
            self.goal_bits = min(max(self.entropy_bits * 2.0**octaves, _LEAST), _MOST)

    def land(self) -> None:
        """Find the coarsest steps with which the loss is within the limit; the parameters are rounded to them.

        All steps are moved by one factor, of at most four octaves either way. Training can go on.

        Raises:
            ConfigError: the training has not yet come to the choice of steps; or no steps there are within the limit,
                and the model is as it was.
        """
        super().land()

    def _land(self) -> None:
        grid, moved = self._ready(), 0.0

        def move_to(octaves: float) -> None:
            nonlocal moved
            grid.move(octaves - moved)
            moved = octaves

        low, high, tried, best = -_REACH, _REACH, 0.0, None
        while high - low > _CLOSE:
            move_to(tried)
            grid.round()
            if self._measured() <= self.max_loss:
                best = low = tried
            else:
                high = tried
            grid.restore()
            tried = (low + high) / 2
        move_to(0.0 if best is None else best)
        if best is None:
            raise ConfigError(
                f"no steps give a loss of at most {self.max_loss:.6g}; the finest tried gives {self.loss:.6g}: "
                "train longer, or allow a larger max_loss"
            )
        self._entropy = grid.entropy_bits()
        info = self._file.write(self.quantizer())
        self.bits_per_parameter = round(info.bits_per_parameter, 3)

    def state_dict(self) -> dict[str, Any]:
        follows = {"max_loss": self.max_loss, "peak": self._peak, "stride": self._stride, "error": self._error}
        return {**super().state_dict(), **follows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("max_loss") != self.max_loss:
            saved = state.get("max_loss")
            raise ConfigError(
                f"cannot resume: max_loss was {saved} when the state was saved and is {self.max_loss} now"
            )
        self._peak, self._stride, self._error = (float(state[key]) for key in ("peak", "stride", "error"))
        super().load_state_dict(state)

    def _begin(self, fit: Callable[..., None]) -> None:
        self.goal_bits = self.bits_per_parameter
        fit(self.goal_bits)
        self._entropy = self._ready().entropy_bits()

    def _sought_bits(self) -> float:
        return 1.0  # the size is yet to be found, and with less pressure it does not come down as far

    def _learn_goal(self) -> None:
        """No file is asked: the loss says what entropy the weights may have."""

    def _measured(self) -> float:
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                loss = float(self._evaluate(self._module))
        finally:
            self._module.train(training)
        self.loss = mean_over_processes(loss, self._constraint.parameters[0])
        if not math.isfinite(self.loss):
            raise ConfigError(f"evaluate returned {self.loss} after {self.step} optimizer steps; it must be finite")
        return self.loss
