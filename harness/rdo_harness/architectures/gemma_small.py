"""A small Gemma 2 over bytes, trained from scratch (Gemma Team, 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo_harness.architectures.base import ByteArchitecture, seeded
from rdo_harness.registries import ARCHITECTURES

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Task


@ARCHITECTURES.register("gemma-small")
@dataclass(frozen=True)
class GemmaSmall(ByteArchitecture):
    """Gemma 2's blocks: norms before and after, grouped queries, local and global layers in turn, capped logits.

    The output layer is tied to the embedding, whose rows are multiplied by the root of the width.

    Attributes:
        width, intermediate, layers, heads, kv_heads, head_width: size of the model.
        window: how far a local layer sees.
        init: standard deviation of the random weights, as for the other small models.
    """

    name: ClassVar[str] = "gemma-small"

    width: int = 192
    intermediate: int = 512
    layers: int = 3
    heads: int = 6
    kv_heads: int = 3
    head_width: int = 32
    window: int = 64
    init: float = 0.06

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        task.check_kind(self)
        config = Gemma2Config(
            vocab_size=task.num_labels,
            max_position_embeddings=self.max_length,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            query_pre_attn_scalar=self.head_width,
            sliding_window=self.window,
            initializer_range=self.init,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        config._attn_implementation = "eager"  # the others leave the cap of the attention logits out
        with seeded(seed):
            return Gemma2ForCausalLM(config).train()
