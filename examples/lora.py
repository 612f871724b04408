"""Fine-tune LoRA adapters (peft) such that the merged weights compress.

pip install 'backslash-rdo[integrations]' && python examples/lora.py
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import rdo
from rdo.integrations.peft import attach_merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="merged.rdo")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=128, max_position_embeddings=64))  # or from_pretrained
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    # rdo.attach(optimizer, model, lam=...) would count the bits of the adapters alone.
    handle = attach_merged(optimizer, model, lam=0.05)

    for _ in range(arguments.steps):
        start = torch.randint(0, 64, (8, 1))
        ids = (start + torch.arange(16)) % 128  # counting
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    report = handle.rate()
    print(f"merged weights: shape {report.theta['shape']:.2f}, scale {report.theta['scale']:.4f}")

    merged = model.merge_and_unload()
    info = rdo.save_compressed(merged, arguments.out, quantizer=rdo.RelativeQuantizer(ratio=0.3))
    print(f"{arguments.out}: {info.file_bytes:,} bytes, {info.bits_per_parameter:.2f} bits per parameter")


if __name__ == "__main__":
    main()
