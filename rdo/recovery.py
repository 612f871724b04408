"""The last phase of a training to a size: zeros are frozen, and the other weights recover from the rate term.

As after pruning (Han, Pool, Tran and Dally, NeurIPS 2015), which the phases before stand for: the rate term has chosen
what is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdo.coding_grid import CodingGrid
from rdo.control import Decayed
from rdo.errors import ConfigError
from rdo.optimizer_state import OptimizerLike


class Recovery:
    """Begins when the learning rate has fallen to ``share`` of its peak and the weights are rounded hard.

    Attributes:
        begun: whether zeros are frozen.

    Raises:
        ConfigError: ``share`` is not from 0 (never) to below 1.
    """

    def __init__(self, share: float) -> None:
        if not 0.0 <= share < 1.0:
            raise ConfigError(f"recovery must be a share of the learning rate's peak, from 0 to below 1; got {share}")
        self._decayed, self.begun = Decayed(share), False

    def before_step(self, optimizer: OptimizerLike, grid: CodingGrid | None) -> None:
        """Look at the learning rate, and freeze the zeros once that is due.

        Args:
            grid: of weights that are rounded hard, if they are.
        """
        due = self._decayed(optimizer) and self._decayed.share > 0.0
        if due and grid is not None and not self.begun:
            grid.freeze_zeros()
            self.begun = True

    def after_step(self, grid: CodingGrid) -> None:
        """Take back what the optimizer did to frozen weights."""
        if self.begun:
            grid.keep_zeros()

    def state_dict(self) -> dict[str, Any]:
        """Numbers; which weights are frozen, the masters say."""
        return {"peak": self._decayed.peak, "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._decayed.peak, self.begun = float(state["peak"]), bool(state["begun"])
