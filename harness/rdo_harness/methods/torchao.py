"""Weight-only rounding to nearest of torchao, PyTorch's own quantisation library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.methods.peer import PeerQuantization
from rdo_harness.registries import METHODS


@METHODS.register("torchao")
@dataclass(frozen=True)
class TorchAO(PeerQuantization):
    """Symmetric integers of 1 to 8 bits with a scale for each group or row, as torchao rounds them."""

    name: ClassVar[str] = "torchao"
    peer: ClassVar[str] = "torchao"
