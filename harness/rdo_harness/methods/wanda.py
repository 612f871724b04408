"""Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.methods.peer import PeerPruning
from rdo_harness.registries import METHODS


@METHODS.register("wanda")
@dataclass(frozen=True)
class Wanda(PeerPruning):
    """Pruning by llmcompressor's Wanda, row by row by weight times activation norm; then rounding to nearest."""

    name: ClassVar[str] = "wanda"
    peer: ClassVar[str] = "wanda"
