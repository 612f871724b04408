"""AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from rdo_harness.methods.base import Context
from rdo_harness.methods.peer import PeerQuantization
from rdo_harness.peers.exchange import Matrix
from rdo_harness.peers.process import Answer
from rdo_harness.registries import METHODS


@METHODS.register("awq")
@dataclass(frozen=True)
class AWQ(PeerQuantization):
    """AWQ as in llmcompressor: input channels rescaled by activations, then integers between least and largest weight.

    The inverse of the scales goes into the norm or the linear layer before, so that a file needs no room for them.
    """

    name: ClassVar[str] = "awq"
    peer: ClassVar[str] = "awq"

    def ask(
        self, model: nn.Module, matrices: Mapping[str, Matrix], options: Mapping[str, Any], context: Context
    ) -> tuple[Answer, dict[str, Any]]:
        return super().ask(model, matrices, {**options, "activation_aware": True}, context)
