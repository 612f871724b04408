"""Train a small GPT from scratch on the bytes of a text file to a size that is asked for.

python examples/gpt.py README.md --bits 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import rdo

WIDTH, HEADS, LAYERS, CONTEXT = 64, 4, 2, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=float, default=3.0, help="of the whole file, per parameter")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", default="gpt.rdo")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    data = torch.frombuffer(bytearray(arguments.text.read_bytes()), dtype=torch.uint8).long()
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # From random weights and at a constant learning rate the loss sees rounded weights from step 20 on.
    handle = rdo.attach(optimizer, model, bits_per_parameter=arguments.bits, target_options={"start": 0})
    for step in range(arguments.steps):
        starts = torch.randint(0, len(data) - CONTEXT - 1, (16, 1))
        ids = data[starts + torch.arange(CONTEXT + 1)]
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss:.3f} nats per byte")
    info = handle.save(arguments.out)
    print(f"{arguments.out}: {info.file_bytes:,} bytes, {info.bits_per_parameter:.3f} bits per parameter")


if __name__ == "__main__":
    main()
