"""One process of the tests of files that several write together; started by ``torchrun`` or alone."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import rdo
from rdo.errors import RdoError

OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "rows": {"quantizer": rdo.RelativeQuantizer(ratio=0.3, granularity="row"), "coder": ["rans", "context"]},
    "lossless": {"lossless": True},
    "narrow": {"raw_dtype": torch.bfloat16, "compressible": lambda name, tensor: name == "large"},
}


class Net(nn.Module):
    """Streams and raw tensors of several messages, tied ones, one without weights, and ``head`` of two rows only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Parameter(torch.randn(1500, 1000))
        self.inner = nn.ModuleList([nn.Linear(300, 1000), nn.Linear(70, 70), nn.Linear(70, 70)])
        self.inner[2].weight = self.inner[1].weight
        self.head = nn.Linear(70, 2).to(torch.bfloat16)
        self.register_buffer("seen", torch.arange(7))
        self.register_buffer("none", torch.empty(0, 3))


def fsdp(mesh: Any = None, **options: Any) -> nn.Module:
    model = Net()
    for layer in (model.inner[0], model.head):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel() -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(Net(), mesh, {"inner.0": ColwiseParallel()})


def gathered(value: Any) -> list[Any]:
    """That of each process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def saved(model: nn.Module | dict[str, Tensor], file: Path, **options: Any) -> dict[str, Any]:
    """The file, what each process says of it, and which tensors each was asked about."""
    asked: list[str] = []
    choose = options.pop("compressible", None)

    def compressible(name: str, tensor: Tensor) -> bool:
        asked.append(name)
        if choose is not None:
            return bool(choose(name, tensor))
        return tensor.is_floating_point() and (tensor.ndim > 1 or "lossless" in options)

    counted = rdo.save_compressed(model, None, compressible=compressible, **options)
    assert not file.exists()
    info = rdo.save_compressed(model, file, compressible=compressible, **options)
    infos = [hashlib.sha256(json.dumps(found.to_json()).encode()).hexdigest() for found in (counted, info)]
    found = {"infos": gathered(infos), "asked": gathered(asked)}
    if not dist.is_initialized() or dist.get_rank() == 0:
        found["digest"] = hashlib.sha256(file.read_bytes()).hexdigest()
        found["bytes"] = [info.file_bytes, file.stat().st_size]
        found["sound"] = rdo.verify_compressed(file).sound
    return found


def refused(out: Path) -> dict[str, Any]:
    """What each process is told when a file cannot be written, and what is left on the disk."""
    model = fsdp()
    file = out / f"{dist.get_world_size()}-kept.rdo"
    if dist.get_rank() == 0:
        file.write_bytes(b"old")
    messages = []

    def attempt(path: Path, state: Any) -> None:
        try:
            rdo.save_compressed(state, path)
            messages.append("none")
        except (RdoError, OSError) as error:
            messages.append(f"{type(error).__name__}: {error}")

    attempt(out / "no such folder" / "model.rdo", model)
    if dist.get_rank() == 0:  # the disk is full when most of the file is written, and others have more to send
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
    attempt(file, model)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    attempt(file, {f"{name}{dist.get_rank()}": tensor for name, tensor in model.state_dict().items()})
    part = model.inner[0].weight.to_local()
    if part.numel():
        part.data[0, 0] = torch.nan
    attempt(file, model)
    found: dict[str, Any] = {"messages": gathered(messages)}
    return found | {"kept": file.read_bytes().decode(), "left": [path.name for path in out.glob(".*")]}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    size = dist.get_world_size() if dist.is_initialized() else 1

    def save(kind: str, option: str, build: Callable[[], nn.Module]) -> dict[str, Any]:
        return saved(build(), out / f"{size}-{kind}-{option}.rdo", **OPTIONS[option])

    kinds: dict[str, Callable[[], nn.Module]] = {"one": Net}
    if size > 1:
        kinds = {
            "fsdp": fsdp,
            "tp": tensor_parallel,
            "hsdp": lambda: fsdp(init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicate", "shard"))),
            "offload": lambda: fsdp(offload_policy=CPUOffloadPolicy(pin_memory=False)),
        }
    results = {
        f"{kind}-{option}": save(kind, option, build)
        for kind, build in kinds.items()
        for option in OPTIONS
        if option == "uniform" or kind in ("one", "fsdp")
    }
    if size > 1:
        results["refused"] = refused(out)
        dist.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        for name, found in results.items():
            (out / f"{size}-{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
