"""HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.methods.peer import PeerQuantization
from rdo_harness.registries import METHODS


@METHODS.register("hqq")
@dataclass(frozen=True)
class HQQ(PeerQuantization):
    """HQQ by its own library, groups along the rows, without calibration data; zero points are real numbers."""

    name: ClassVar[str] = "hqq"
    peer: ClassVar[str] = "hqq"
