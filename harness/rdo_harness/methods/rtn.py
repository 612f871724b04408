"""Normal training, then rounding to the nearest multiple of a step: the anchor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.methods.base import Method, OperatingPoint
from rdo_harness.registries import METHODS


@METHODS.register("rtn")
@dataclass(frozen=True)
class RoundToNearest(Method):
    """Round-to-nearest quantisation of a normally trained model."""

    name: ClassVar[str] = "rtn"

    def points(self) -> list[OperatingPoint]:
        return [OperatingPoint(rate=None, quantizer=quantizer) for quantizer in self.quantizers()]
