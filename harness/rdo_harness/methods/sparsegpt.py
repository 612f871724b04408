"""SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.methods.peer import PeerPruning
from rdo_harness.registries import METHODS


@METHODS.register("sparsegpt")
@dataclass(frozen=True)
class SparseGPT(PeerPruning):
    """Unstructured pruning by llmcompressor's SparseGPT, which also corrects the weights it keeps; then rounding."""

    name: ClassVar[str] = "sparsegpt"
    peer: ClassVar[str] = "sparsegpt"
