"""Train a classifier under a rate constraint in a plain PyTorch loop, and write it compressed.

python examples/pytorch.py
"""

from __future__ import annotations

import argparse

import torch

import rdo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="model.rdo")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    centres = 2 * torch.randn(10, 64)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = rdo.attach(optimizer, model, lam=0.05)  # the only line that is not plain PyTorch

    for step in range(arguments.steps):
        labels = torch.randint(0, 10, (128,))
        loss = torch.nn.functional.cross_entropy(model(centres[labels] + torch.randn(128, 64)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            report = handle.rate()
            print(f"step {step}: loss {loss:.3f}, shape {report.theta['shape']:.2f}")

    info = rdo.save_compressed(model, arguments.out, quantizer=rdo.RelativeQuantizer(ratio=0.3))
    print(f"{arguments.out}: {info.file_bytes:,} bytes, {info.bits_per_parameter:.2f} bits per parameter")
    model.load_state_dict(rdo.load_compressed(arguments.out))


if __name__ == "__main__":
    main()
