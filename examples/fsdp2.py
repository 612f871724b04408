"""Train sharded weights (FSDP2) under a rate constraint, with distributed checkpoints.

torchrun --nproc-per-node 2 examples/fsdp2.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import rdo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("fsdp2-example"))
    arguments = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"

    torch.manual_seed(0)
    centres = 2 * torch.randn(10, 64, device=device)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)).to(device)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = rdo.attach(optimizer, model, lam=0.05)  # after fully_shard and the optimizer

    torch.manual_seed(1 + dist.get_rank())  # each process has data of its own
    for _ in range(arguments.steps):
        labels = torch.randint(0, 10, (64,), device=device)
        inputs = centres[labels] + torch.randn(64, 64, device=device)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "rate": handle}
    dcp.save(state, checkpoint_id=arguments.out / "checkpoint")
    dcp.load(state, checkpoint_id=arguments.out / "checkpoint")  # at any number of processes
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    # On every process: each codes a share of the tensors, rank 0 writes the file.
    info = rdo.save_compressed(model, arguments.out / "model.rdo", quantizer=rdo.RelativeQuantizer(ratio=0.3))
    if dist.get_rank() == 0:
        print(f"{info.bits_per_parameter:.2f} bits per parameter")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
