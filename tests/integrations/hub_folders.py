"""Small random models of several kinds, saved as hub folders and compressed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rdo import load_compressed, save_compressed
from rdo.channels import Axis, ChannelSteps, channels
from rdo.quantizers import AllocatedQuantizer
from rdo_harness import cli

VOCABULARY = 131
IDS = torch.tensor([[5, 17, 130, 2, 77, 41, 9]])


def llama(**options: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **tokens, **options}))


def gpt2() -> PreTrainedModel:
    """Tied embeddings, and matrices that lie the other way round."""
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=3))


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=VOCABULARY, num_labels=5))


def deepseek() -> PreTrainedModel:
    """A mixture of experts: a matrix for each in the folder, from transformers 5 on one tensor for all in memory."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "n_routed_experts": 8}
    sizes |= {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    sizes |= {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=3))


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert, "deepseek": deepseek}


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Save with weights that are not those of a fresh initialisation, biases and norms included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.save_pretrained(folder, **options)
    return folder


def compress(folder: Path, *options: str) -> Path:
    out = folder.with_name(f"{folder.name}-rdo")
    assert cli.main(["compress", str(folder), str(out), *(options or ("--step", "2^-7"))]) == 0
    return out


def decompress(folder: Path) -> Path:
    out = folder.with_name(f"{folder.name}-plain")
    assert cli.main(["decompress", str(folder), str(out)]) == 0
    return out


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of weights in memory of their own: on a CPU the last bits of torch's sums depend on addresses, and transformers
    leaves plain weights wherever they lie in their file."""
    with torch.no_grad():
        found: torch.Tensor = copy.deepcopy(model)(input_ids=IDS).logits
    return found


def recompress_by_channels(small: Path, axis_of: dict[str, Axis]) -> None:
    """Give the rows or columns of some matrices of a compressed folder steps of their own, other matrices one."""
    state = load_compressed(small / "model.rdo")
    steps = dict.fromkeys(state, 2.0**-5)
    found: dict[str, ChannelSteps] = {}
    for name, axis in axis_of.items():
        exponents = torch.arange(channels(state[name].shape, axis)) % 3 * 2 - 2  # powers of two
        found[name] = ChannelSteps(2.0**-5, axis, exponents.to(torch.int8))
    save_compressed(state, small / "model.rdo", quantizer=AllocatedQuantizer(steps, 4.0, "absolute", found))
