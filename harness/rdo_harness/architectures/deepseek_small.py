"""A small DeepSeek-V2 over bytes, trained from scratch (DeepSeek-AI, 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo_harness.architectures.base import ByteArchitecture, seeded
from rdo_harness.registries import ARCHITECTURES

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Task


@ARCHITECTURES.register("deepseek-small")
@dataclass(frozen=True)
class DeepSeekSmall(ByteArchitecture):
    """DeepSeek-V2's blocks: keys and values from a shared latent vector, a dense layer, then mixtures of experts.

    transformers packs the experts of a layer into two parameters of three axes; they count as matrices here.

    Attributes:
        width, intermediate, layers, heads: size of the model; the first layer is dense.
        latent, rope_width, head_width: sizes of latent attention: of the latent vector, and of the parts of a head
            with and without rotary positions.
        experts, active, expert_intermediate: routed experts of a layer, how many a byte takes, and their size; one
            shared expert of that size is always active.
        init: standard deviation of the random weights, as for the other small models.
    """

    name: ClassVar[str] = "deepseek-small"

    width: int = 192
    intermediate: int = 512
    layers: int = 3
    heads: int = 6
    latent: int = 64
    rope_width: int = 16
    head_width: int = 32
    experts: int = 8
    active: int = 2
    expert_intermediate: int = 128
    init: float = 0.06

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

        task.check_kind(self)
        config = DeepseekV2Config(
            vocab_size=task.num_labels,
            max_position_embeddings=self.max_length,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            kv_lora_rank=self.latent,
            q_lora_rank=None,
            qk_rope_head_dim=self.rope_width,
            qk_nope_head_dim=self.head_width,
            v_head_dim=self.head_width,
            n_routed_experts=self.experts,
            num_experts_per_tok=self.active,
            n_shared_experts=1,
            moe_intermediate_size=self.expert_intermediate,
            first_k_dense_replace=1,
            initializer_range=self.init,
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        with seeded(seed):
            return DeepseekV2ForCausalLM(config).train()
