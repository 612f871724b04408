"""One process of the tests of sharded training to a size; started by ``torchrun`` or alone. Writes what it found."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from worker import all_reduced_by, whole

import rdo
from rdo.attach import TargetAttachment
from rdo.errors import CheckpointError, ConfigError

BITS = 6.0
STEPS = 40
"""Weights are rounded after 20; a file is coded for trial after 20 and 32."""
UNTIED = {"start": 0, "compensated": False, "coder": "rans"}
"""What shards can have. In a file of 3 kB the entry of a second coder would be 2 % of the size."""


class Net(nn.Module):
    """``down`` has two rows only: with three processes one holds nothing of it. ``again`` may be tied to ``middle``."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(24, 60)
        self.norm = nn.LayerNorm(60)
        self.middle = nn.Linear(60, 60, bias=False)
        self.again = nn.Linear(60, 60, bias=False)
        if tied:
            self.again.weight = self.middle.weight
        self.down = nn.Linear(60, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.again(self.norm(self.middle(self.up(x).tanh()))))


def batch(step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(48, 24, generator=generator)
    return inputs[part], inputs[part, :4].sum(1).gt(0).long()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: slice = slice(None)) -> None:
    for step in steps:
        inputs, labels = batch(step, part)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def sized(model: nn.Module, options: dict[str, Any] = UNTIED) -> tuple[torch.optim.Optimizer, TargetAttachment]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = rdo.attach(optimizer, model, bits_per_parameter=BITS, verbose=False, target_options=options)
    assert isinstance(handle, TargetAttachment)
    return optimizer, handle


def result_of(model: nn.Module, handle: TargetAttachment, file: Path) -> dict[str, Any]:
    """What the training came to, and the file that it is saved as. All processes must call it."""
    report, grid = handle.rate(), handle.target.grid
    assert grid is not None
    found = {"report": [report.step, report.lam, report.entropy_bits_per_parameter], "steps": grid.steps.tolist()}
    weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
    found["weights"] = {name: weight.reshape(-1).tolist() for name, weight in weights.items()}
    info = handle.save(file)
    found["saved"] = [info.bits_per_parameter, info.file_bytes, info.parameters, len(info.tensors)]
    if "RANK" not in os.environ or dist.get_rank() == 0:
        found["on disk"] = file.stat().st_size
        found["digest"] = hashlib.sha256(file.read_bytes()).hexdigest()
        decoded = rdo.load_compressed(file)
    saved = {name: whole(p.detach()) for name, p in model.named_parameters()}
    if "digest" in found:
        found["decoded"] = all(torch.equal(decoded[name], value) for name, value in saved.items())
    return found


def run(model: nn.Module, file: Path) -> dict[str, Any]:
    optimizer, handle = sized(inner_of(model))
    train(model, optimizer, range(STEPS))
    return result_of(inner_of(model), handle, file)


def inner_of(model: nn.Module) -> nn.Module:
    """The model in DDP, whose names have no prefix."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def fsdp(mesh: Any = None, **options: Any) -> nn.Module:
    model = Net()
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def tensor_parallel() -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    return parallelize_module(Net(tied=False), mesh, {"up": ColwiseParallel(), "middle": RowwiseParallel()})


def mesh_of(replicas: int, shards: int) -> Any:
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def replicas_with_data_of_their_own(file: Path) -> dict[str, Any]:
    """A late, compensated first rounding, for which the inputs of all replicas count; without processes, all data."""
    model: nn.Module = Net()
    part = slice(None)
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
        part = slice(dist.get_rank(), None, dist.get_world_size())
    optimizer, handle = sized(inner_of(model), {"start": 20})
    train(model, optimizer, range(20), part)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    digests: list[Any] = [digest]
    if dist.is_initialized():
        digests = [None] * dist.get_world_size()
        dist.all_gather_object(digests, digest)
    assert handle.target.grid is not None
    masters = zip(handle.target.grid.names, handle.target.grid.masters, strict=True)
    return {
        "digests": digests,
        "masters": {name: master.reshape(-1).tolist() for name, master in masters},
        "steps": handle.target.grid.steps.tolist(),
    }


def saved_state(model: nn.Module, optimizer: torch.optim.Optimizer, handle: rdo.Attachment) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "size": handle}


def stop_at(stopped: int, folder: Path) -> dict[str, Any]:
    model = fsdp()
    optimizer, handle = sized(model)
    train(model, optimizer, range(stopped))
    dcp.save(saved_state(model, optimizer, handle), checkpoint_id=folder)
    return {"step": handle.target.step}


def resume(stopped: int, folder: Path, file: Path) -> dict[str, Any]:
    model = fsdp()
    optimizer, handle = sized(model)
    state = saved_state(model, optimizer, handle)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer, range(stopped, STEPS))
    return result_of(model, handle, file)


def counted() -> dict[str, Any]:
    """The sizes of the all-reduces of some optimizer steps, beside those of FSDP2 itself."""
    model = fsdp()
    optimizer, _ = sized(model)
    sizes = {}
    for step in range(30):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        sizes[step] = all_reduced_by(optimizer.step)
    return {"sizes": sizes}


def refused(out: Path) -> dict[str, Any]:
    """What each process is told when a size cannot be had, compensation is asked for, or rank 0 cannot write."""
    messages = []
    for options, bits in (({}, BITS), (UNTIED, 0.5)):
        model = fsdp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        try:
            rdo.attach(optimizer, model, bits_per_parameter=bits, verbose=False, target_options=options)
            train(model, optimizer, range(20))
            messages.append("none")
        except ConfigError as error:
            messages.append(str(error))
    model = fsdp()
    optimizer, handle = sized(model)
    train(model, optimizer, range(20))
    try:
        handle.save(out / "no such folder" / "model.rdo")
        messages.append("none")
    except (OSError, CheckpointError) as error:
        messages.append(f"{type(error).__name__}: {error}")
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, messages)
    return {"messages": gathered}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    size = 1
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        size = dist.get_world_size()

    def file(name: str) -> Path:
        return out / f"{size}-{name}.rdo"

    scenarios: dict[str, Callable[[], dict[str, Any]]] = {
        "replicas": lambda: replicas_with_data_of_their_own(file("replicas")),
    }
    if size == 1:
        scenarios["one"] = lambda: run(Net(), file("one"))
        scenarios["one-untied"] = lambda: run(Net(tied=False), file("one-untied"))
    else:
        kinds: dict[str, Callable[[], nn.Module]] = {
            "fsdp": fsdp,
            "again": fsdp,
            "tp": tensor_parallel,
            "ddp": lambda: nn.parallel.DistributedDataParallel(Net()),
            "hsdp": lambda: fsdp(mesh_of(size, 1)),
            "rows": lambda: fsdp(mesh_of(1, size)),
            "offload": lambda: fsdp(offload_policy=CPUOffloadPolicy(pin_memory=False)),
        }
        for kind, build in kinds.items():
            scenarios[kind] = lambda kind=kind, build=build: run(build(), file(kind))
        for stopped in (10, 30):
            folder = out / f"dcp-{stopped}"
            if size == 3:
                scenarios[f"stopped-{stopped}"] = lambda at=stopped, folder=folder: stop_at(at, folder)
            scenarios[f"resumed-{stopped}"] = lambda at=stopped, folder=folder: resume(
                at, folder, file(f"resumed-{at}")
            )
        scenarios |= {"counted": counted, "refused": lambda: refused(out)}
    for name, scenario in scenarios.items():
        found = scenario()
        if size == 1 or dist.get_rank() == 0:
            (out / f"{size}-{name}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
