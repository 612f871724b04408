"""Which parameters of a model a rate constraint covers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from rdo.constraint import RateConstraint
from rdo.errors import ConfigError

Selection = Literal["matrices", "all"] | Callable[[str, Tensor], bool]
"""Trainable parameters of two or more axes; all; or those that a function of name and parameter takes."""


def describe(constraint: RateConstraint, trainable: Sequence[tuple[str, Tensor]]) -> str:
    """Which parameters a constraint covers and what share of the trainable weights that is, as lines of text."""
    total = sum(parameter.numel() for _, parameter in trainable)
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, parameter in zip(constraint.names, constraint.parameters, strict=True):
        key = (re.sub(r"\d+", "*", name), tuple(parameter.shape))
        groups[key] = groups.get(key, 0) + 1
    lines = [
        f"rdo: {constraint.apply} rate constraint, {constraint.entropy_model.name}, covers {len(constraint.names)} of "
        f"{len(trainable)} parameters, {constraint.count:,} of {total:,} weights ({constraint.count / total:.1%})"
    ]
    for (name, size), count in groups.items():
        lines.append(f"  {count:3d} x {name} {list(size)}")
    return "\n".join(lines)


def covers(selection: Selection, name: str, parameter: Tensor) -> bool:
    """Whether the selection takes a parameter.

    Raises:
        ConfigError: it is none.
    """
    if callable(selection):
        return selection(name, parameter)
    if selection not in ("matrices", "all"):
        raise ConfigError(
            f"parameters must be 'matrices', 'all' or a function of name and parameter; got {selection!r}"
        )
    return selection == "all" or parameter.ndim >= 2
