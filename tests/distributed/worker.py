"""One process of the tests of sharded training; started by ``torchrun``. Writes what it found to a folder.

Every scenario trains the same small model on the same data for some steps, sharded in one way, and rank 0 writes the
weights and reports that result. test_sharding.py compares them with one process.
"""

from __future__ import annotations

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
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import rdo
from rdo.control import WarmUp
from rdo.errors import ConfigError, NonFiniteWeightsError
from rdo.optim import RateAdamW

STEPS = 4
APPLICATIONS: dict[str, dict[str, Any]] = {
    "gradient": {"lam": 0.3},
    "decoupled": {"lam": 0.02, "apply": "decoupled", "pooling": "tensor", "scale_by_lr": True},
    "proximal": {"lam": 0.3, "apply": "proximal", "precondition": True, "lam_factors": {"up.*": 2.0}},
}


class Net(nn.Module):
    """``up`` has rows for every process, ``down`` only two: with three processes one holds nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(12)
        self.middle = nn.Linear(12, 12, bias=False)
        self.down = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.middle(self.up(x).tanh())))


def loss_of(model: nn.Module) -> Tensor:
    """The same batch on every process, so that averaged gradients are those of one process."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(16, 6, generator=generator)
    return nn.functional.cross_entropy(model(inputs), torch.randint(0, 2, (16,), generator=generator))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def result_of(model: nn.Module, handle: rdo.Attachment) -> dict[str, Any]:
    """Weights, the report, and the rates as they are now. All processes must call it."""
    weights = {name.removeprefix("module."): whole(p.detach()) for name, p in model.named_parameters()}
    report, constraint = handle.rate(), handle.constraint
    rates = [constraint.surrogate_rate(), constraint.coded_rate(rdo.RelativeQuantizer(ratio=0.5))]
    return {
        "weights": {name: weight.reshape(-1).tolist() for name, weight in weights.items()},
        "report": [report.step, report.parameters, report.surrogate_bits_per_parameter, *report.theta.values()],
        "rates": rates,
    }


def run(model: nn.Module, **options: Any) -> dict[str, Any]:
    optimizer = optimizer_of(model)
    handle = rdo.attach(optimizer, model, verbose=False, **options)
    train(model, optimizer)
    return result_of(model, handle)


def fsdp(mesh: Any = None, **options: Any) -> nn.Module:
    model = Net()
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def tensor_parallel() -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    # The norm and the output layer stay plain: replicated on every process.
    return parallelize_module(Net(), mesh, {"up": ColwiseParallel(), "middle": RowwiseParallel()})


def data_parallel() -> nn.Module:
    return nn.parallel.DistributedDataParallel(Net())


def hybrid() -> nn.Module:
    """HSDP of as many replicas as there are processes; each weight lies on all of them and counts once."""
    return fsdp(init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("replicate", "shard")))


def hybrid_of_rows() -> nn.Module:
    """The other way round: one replica of as many shards."""
    return fsdp(init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("replicate", "shard")))


def fails_everywhere() -> dict[str, Any]:
    """A weight that is NaN on one process ends all of them in the same step; then processes that disagree."""
    model = fsdp()
    optimizer = optimizer_of(model)
    rdo.attach(optimizer, model, lam=0.3, verbose=False)
    if dist.get_rank() == 0:
        model.up.weight.to_local().data[0, 0] = torch.nan
    try:
        train(model, optimizer, 1)
        message = "none"
    except NonFiniteWeightsError as error:
        message = str(error)
    other = fsdp()
    ranks = dist.get_rank()
    try:
        rdo.attach(
            optimizer_of(other), other, lam=0.3, verbose=False, parameters=lambda name, p: ranks or name == "up.weight"
        )
        disagreement = "none"
    except ConfigError as error:
        disagreement = str(error)
    try:
        RateAdamW(other.parameters(), rate=rdo.RateConstraint([("w", other.up.weight)], lam=0.3))
        fused = "none"
    except ConfigError as error:
        fused = str(error)
    messages: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, (message, disagreement, fused))
    return {"messages": messages}


def counted() -> dict[str, Any]:
    """How many collectives a step takes, and of how many numbers, beside those of FSDP2 itself."""
    sizes: dict[str, list[int]] = {}
    for pooling in ("global", "tensor"):
        model = fsdp()
        optimizer = optimizer_of(model)
        rdo.attach(optimizer, model, lam=0.3, pooling=pooling, verbose=False)
        loss_of(model).backward()
        sizes[pooling] = all_reduced_by(optimizer.step)
    return {"sizes": sizes}


def all_reduced_by(call: Callable[[], Any]) -> list[int]:
    """How many numbers each all-reduce of a call has."""
    original, seen = dist.all_reduce, []

    def counting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(tensor.numel())
        return original(tensor, *args, **options)

    dist.all_reduce = counting
    try:
        call()
    finally:
        dist.all_reduce = original
    return seen


def resumable(model: nn.Module) -> tuple[torch.optim.Optimizer, rdo.Attachment]:
    """A schedule and peak learning rates, so that resuming at the wrong step shows."""
    optimizer = optimizer_of(model)
    options: dict[str, Any] = {"lam": WarmUp(0.05, 4), "apply": "decoupled", "scale_by_lr": True}
    return optimizer, rdo.attach(optimizer, model, verbose=False, **options)


def saved_state(model: nn.Module, optimizer: torch.optim.Optimizer, handle: rdo.Attachment) -> dict[str, Any]:
    """What DCP saves and loads; the handle is a Stateful of its own."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "rate": handle}


def save_midway(folder: Path) -> dict[str, Any]:
    model = fsdp()
    optimizer, handle = resumable(model)
    train(model, optimizer, STEPS // 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    dcp.save(saved_state(model, optimizer, handle), checkpoint_id=folder)
    return result_of(model, handle)


def resume(folder: Path) -> dict[str, Any]:
    model = fsdp()
    optimizer, handle = resumable(model)
    state = saved_state(model, optimizer, handle)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer, STEPS - STEPS // 2)
    return result_of(model, handle)


def uninterrupted() -> dict[str, Any]:
    model = Net()
    optimizer, handle = resumable(model)
    train(model, optimizer, STEPS // 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    train(model, optimizer, STEPS - STEPS // 2)
    return result_of(model, handle)


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        scenarios: dict[str, Callable[[], dict[str, Any]]] = {
            f"one-{name}": lambda options=options: run(Net(), **options) for name, options in APPLICATIONS.items()
        }
        scenarios["one-resumed"] = uninterrupted
        rank, size = 0, 1
    else:
        dist.init_process_group("gloo")
        rank, size = dist.get_rank(), dist.get_world_size()
        kinds: dict[str, Callable[[], nn.Module]] = {
            "fsdp": fsdp, "tp": tensor_parallel, "ddp": data_parallel, "hsdp": hybrid, "rows": hybrid_of_rows,
            "offload": lambda: fsdp(offload_policy=CPUOffloadPolicy(pin_memory=False)),
        }  # fmt: skip
        scenarios = {
            f"{kind}-{name}": lambda build=build, options=options: run(build(), **options)
            for kind, build in kinds.items()
            for name, options in APPLICATIONS.items()
            if name == "gradient" or kind in ("fsdp", "tp")
        }
        scenarios["again"] = lambda: run(fsdp(), **APPLICATIONS["proximal"])
        scenarios |= {"fails": fails_everywhere, "counted": counted}
        if size == 3:
            scenarios["saved"] = lambda: save_midway(out / "dcp")
        scenarios["resumed"] = lambda: resume(out / "dcp")
    for name, scenario in scenarios.items():
        found = scenario()
        if rank == 0:
            (out / f"{size}-{name}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
