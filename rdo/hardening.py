"""From unrounded weights to rounded ones by degrees, in the optimizer steps after the first rounding.

Until then the loss sees soft weights, and the optimizer moves the unrounded ones as ever. Two kinds of softness:

- ``"blend"``: the weights part of the way to their rounded values, a little further each step; at the end all the way
  (alpha-blending: Liu and Mattina, IJCAI 2019).
- ``"noise"``: the weights and uniform noise as wide as a step, of the size of the error of rounding and without its
  jumps (Balle, Laparra and Simoncelli, ICLR 2017); at the end they are rounded at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from rdo.coding_grid import CodingGrid
from rdo.control import largest_rate
from rdo.errors import ConfigError
from rdo.optimizer_state import OptimizerLike

HARDENING = 100
"""Optimizer steps."""
Softness = Literal["blend", "noise"]
_HARD = 0.4
"""Share of its peak to which the learning rate falls before weights are hard, however few steps there were."""


class Hardening:
    """How soft the weights are that the loss sees.

    They are hard after ``steps`` optimizer steps, or once the learning rate has fallen to 0.4 of its largest since the
    first rounding; on the way to either they harden in proportion.

    Raises:
        ConfigError: ``steps`` is below 0, or there is no such kind of softness.
    """

    def __init__(self, steps: int, softness: Softness) -> None:
        if steps < 0:
            raise ConfigError(f"hardening must be 0 or more optimizer steps, got {steps}")
        if softness not in get_args(Softness):
            raise ConfigError(f"softness must be one of {', '.join(get_args(Softness))}; got {softness!r}")
        self._steps, self._softness = steps, softness
        self._done, self._peak, self._rate = 0, 0.0, 0.0

    @property
    def hardness(self) -> float:
        """From 0, which no step has, to 1: the weights are rounded."""
        by_steps = (self._done + 1) / (self._steps + 1)
        fallen = 1.0 - self._rate / self._peak if self._peak else 0.0
        return min(1.0, max(by_steps, fallen / (1.0 - _HARD)))

    def before_step(self, optimizer: OptimizerLike) -> None:
        """Look at the learning rate. Call it from the first rounding on."""
        self._rate = largest_rate(optimizer)
        self._peak = max(self._peak, self._rate)

    def round(self, grid: CodingGrid) -> None:
        """Keep the weights of a grid as masters, and round or soften them."""
        grid.round()
        hardness = self.hardness
        if hardness < 1.0:
            if self._softness == "blend":
                grid.soften(1.0 - hardness)
            else:
                grid.add_noise(seed=self._done)
        self._done += 1

    def end(self) -> None:
        """Let the weights be hard from now on."""
        self._done = max(self._done, self._steps)

    def state_dict(self) -> dict[str, Any]:
        """What :attr:`hardness` depends on."""
        return {"done": self._done, "peak": self._peak, "rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._done, self._peak, self._rate = int(state["done"]), float(state["peak"]), float(state["rate"])
