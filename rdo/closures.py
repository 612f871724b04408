"""``optimizer.step(closure)``: what comes between gradients and step, where the step makes the gradients itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from rdo.errors import ConfigError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a step, by place and by name."""


def act_on_gradients(optimizer: Optimizer, call: Call, act: Callable[[], None]) -> Call | None:
    """Act now, or when the closure that the step is called with has made the gradients, as Lightning's does.

    Returns:
        What replaces the step's arguments; None if there is no closure.

    Raises:
        ConfigError: in the step, if it calls its closure twice: act would not be part of the loss that it returns.
    """
    arguments, options = call
    # Optimizer.step is called unbound inside torch's wrapper, so the first argument may be the optimizer itself.
    closure = options.get("closure", next((each for each in arguments if each is not optimizer), None))
    if closure is None:
        act()
        return None
    called = False

    def acting() -> Any:
        nonlocal called
        if called:
            raise ConfigError(
                f"{type(optimizer).__name__} calls its closure again within a step, and the rate is no part of the "
                "loss that it returns: use rdo.loss.RateTerm, or another optimizer"
            )
        called = True
        loss = closure()
        with torch.no_grad():
            act()
        return loss

    if "closure" in options:
        return arguments, {**options, "closure": acting}
    return tuple(acting if each is closure else each for each in arguments), options
