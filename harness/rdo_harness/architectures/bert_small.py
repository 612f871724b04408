"""A small BERT over bytes, trained from scratch (Devlin et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo_harness.architectures.base import Architecture, seeded
from rdo_harness.registries import ARCHITECTURES

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Kind, Task

_FIRST = 256
"""Token that starts a text; its state is what is classified."""


@ARCHITECTURES.register("bert-small")
@dataclass(frozen=True)
class BertSmall(Architecture):
    """BERT's blocks with learned positions and a classification head; tokens are bytes after one that starts a text.

    Attributes:
        width, intermediate, layers, heads: size of the model.
        init: standard deviation of the random weights.
    """

    name: ClassVar[str] = "bert-small"
    kind: ClassVar[Kind] = "classification"
    pad_id: ClassVar[int] = 0

    max_length: int = 128
    width: int = 192
    intermediate: int = 512
    layers: int = 3
    heads: int = 6
    init: float = 0.06

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        from transformers import BertConfig, BertForSequenceClassification

        task.check_kind(self)
        config = BertConfig(
            vocab_size=_FIRST + 1,
            max_position_embeddings=self.max_length,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            initializer_range=self.init,
        )
        config.num_labels = task.num_labels
        with seeded(seed):
            return BertForSequenceClassification(config).train()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_FIRST, *text.encode()[: self.max_length - 1]] for text in texts]
