"""Weight-only quantisation of optimum-quanto, Hugging Face's own library for PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rdo.errors import ConfigError
from rdo_harness.methods.base import OperatingPoint
from rdo_harness.methods.peer import PeerQuantization
from rdo_harness.registries import METHODS


@METHODS.register("quanto")
@dataclass(frozen=True)
class Quanto(PeerQuantization):
    """Integers as quanto rounds them: of 8 bits symmetric, in rows; of 4 or 2 bits between least and largest weight.

    Args:
        group_sizes: of 4 and 2 bits; 8 bits are always in rows there.
    """

    name: ClassVar[str] = "quanto"
    peer: ClassVar[str] = "quanto"
    bits: tuple[int, ...] = (8, 4, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.bits) <= {8, 4, 2}:
            raise ConfigError(f"quanto has integers of 8, 4 or 2 bits, got `bits` {list(self.bits)}")

    def points(self) -> list[OperatingPoint]:
        found: list[OperatingPoint] = []
        for point in super().points():
            if point.options["bits"] == 8:
                point = replace(point, options={**point.options, "group_size": 0})
            found += [point] if point not in found else []
        return found
