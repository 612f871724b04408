"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from rdo_harness.config import parse_step

if TYPE_CHECKING:
    import torch

    from rdo.quantizers import Quantizer

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_steps(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add ``--step`` and ``--relative-step``, of which one may be given; :func:`quantizer_from` reads them.

    Returns:
        The group, for further options that exclude these.
    """
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--step", metavar="STEP", help="quantisation step, like 2^-8 or 0.004 (default: 2^-8)")
    steps.add_argument(
        "--relative-step", type=float, metavar="R", help="step as a multiple of the root mean square of each tensor"
    )
    return steps


def quantizer_from(arguments: argparse.Namespace) -> Quantizer:
    """The quantizer that the options ask for.

    Raises:
        ConfigError: they make no sense together, or a value is out of range.
    """
    from rdo.errors import ConfigError
    from rdo.quantizers import RelativeQuantizer, UniformQuantizer

    granularity = getattr(arguments, "granularity", None) or "tensor"
    dead_zone = getattr(arguments, "dead_zone", 0.0)
    if arguments.relative_step is not None:
        return RelativeQuantizer(ratio=arguments.relative_step, granularity=granularity, dead_zone=dead_zone)
    if granularity == "row":
        raise ConfigError("--granularity row needs --relative-step: an absolute step is the same for every row")
    return UniformQuantizer(step=parse_step(arguments.step or "2^-8"), dead_zone=dead_zone)


def dtype_from(name: str | None) -> torch.dtype | None:
    """The floating-point type that an option names, None for None.

    Raises:
        ConfigError: there is none of this name.
    """
    from rdo.checkpoint.container import DTYPES
    from rdo.errors import ConfigError

    if name is None:
        return None
    floats = {known: dtype for known, dtype in DTYPES.items() if dtype.is_floating_point}
    if name not in floats:
        raise ConfigError(f"unknown data type {name!r}; known: {', '.join(floats)}")
    return floats[name]


def print_json(content: dict[str, Any]) -> int:
    """Print an object and return the exit code 0."""
    print(json.dumps(content, indent=2))
    return 0
