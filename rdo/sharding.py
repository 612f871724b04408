"""Weights that several processes share: what each of them holds, and sums in which every weight counts once.

Parameters are tensors of one process, or DTensors: of FSDP2 (``fully_shard``), HSDP, tensor parallelism, or of several
of them at once. Models whose parameters are all plain, DDP's among them, need no communication here: every process does
the same arithmetic on the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rdo.errors import ConfigError

SUMS = 3
"""How many of :data:`rdo_kernels.MOMENTS` are sums over weights that processes add up: count, sum |w|, sum w^2."""


def is_main_process() -> bool:
    """Whether this process is the one to print: rank 0, or the only one."""
    return not _initialised() or torch.distributed.get_rank() == 0


def has_replicas() -> bool:
    """Whether other processes train copies of a model of plain parameters: there is a process group of several."""
    return _initialised() and torch.distributed.get_world_size() > 1


def mean_over_processes(value: float, weight: Tensor) -> float:
    """The mean of a number over all processes, all of which must ask; one process keeps its own.

    Args:
        weight: of the model that they train, plain or sharded: it says where messages travel.
    """
    if not has_replicas():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=message_device([weight]) or weight.device)
    return float(_all_reduced(total)) / torch.distributed.get_world_size()


def local_part(tensor: Tensor) -> Tensor:
    """The elements of a tensor that this process holds, sharing their memory; the tensor itself if it is plain.

    Those of a DTensor may be none.
    """
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return cast(Tensor, cast(Any, tensor).to_local())


def whole(tensor: Tensor) -> Tensor:
    """All elements of a tensor; of a DTensor they are gathered, in which every process of its mesh takes part."""
    if not is_sharded(tensor):
        return tensor
    placed = cast(Any, tensor)
    return cast(Tensor, placed.to(placed.device_mesh.device_type).full_tensor())  # it may be offloaded to the host


def placed_as(tensor: Tensor, part: Tensor) -> Tensor:
    """A part made by this process as a DTensor that lies as another one does; the part itself if that is plain."""
    if not is_sharded(tensor):
        return part
    from torch.distributed.tensor import DTensor

    placed = cast(Any, tensor)
    return DTensor.from_local(
        part, placed.device_mesh, placed.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def part_as_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a tensor that lies as another one does, or that every process has as a whole."""
    if is_sharded(tensor) or not is_sharded(like):
        return local_part(tensor)
    from torch.distributed.tensor import distribute_tensor

    placed = cast(Any, like)
    whole_tensor = tensor.to(placed.device_mesh.device_type)
    return local_part(distribute_tensor(whole_tensor, placed.device_mesh, placed.placements, src_data_rank=None))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def message_device(tensors: Iterable[Tensor]) -> torch.device | None:
    """Where messages of the processes that share some tensors travel; None if all are plain."""
    mesh = next((cast(Any, tensor).device_mesh for tensor in tensors if is_sharded(tensor)), None)
    return None if mesh is None else torch.device(mesh.device_type)  # though the weights may be offloaded


class Shards:
    """The parts of some parameters that this process holds.

    A process contributes a parameter to sums only where its coordinate is 0 in every mesh dimension that the parameter
    is replicated over, plain parameters only on rank 0. So each weight counts once.

    Args:
        names: of the parameters; they must be the same on every process, in the same order.
        parameters: plain tensors and DTensors.

    Raises:
        ConfigError: processes disagree on names or sizes, or a weight would count twice or not at all.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        device = message_device(parameters)
        self.sharded = device is not None
        if device is not None:
            self._device = device
            contributed = [_contributes(parameter) for parameter in parameters]
            self._contributed = torch.tensor(contributed, device=self._device)
            self._check(names)

    def parts(self) -> list[Tensor]:
        """What this process holds of each parameter, sharing its memory; asked for anew in every step."""
        if not self.sharded:
            return list(self._parameters)
        return [local_part(parameter) for parameter in self._parameters]

    def gradients(self) -> list[Tensor]:
        """The gradients of :meth:`parts`; a parameter without one gets zeros.

        Raises:
            ConfigError: a gradient is sparse.
        """
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [gradient for gradient in self.known_gradients() if gradient is not None]

    def known_gradients(self) -> list[Tensor | None]:
        """The gradients of :meth:`parts`, None for a parameter without one.

        Raises:
            ConfigError: a gradient is sparse.
        """
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise ConfigError("sparse gradients cannot carry the rate term; use dense embeddings gradients")
            if parameter.grad is not None and is_sharded(parameter):
                # Sums that tensor parallelism leaves pending are taken now, as the optimizer would.
                mine, own = cast(Any, parameter.grad), cast(Any, parameter)
                if mine.placements != own.placements:
                    parameter.grad = mine.redistribute(own.device_mesh, own.placements)
        return [None if p.grad is None else local_part(p.grad) for p in self._parameters]

    def total(self, moments: Tensor, *, pool: bool) -> Tensor:
        """The moments of the whole parameters from those of :meth:`parts`, float64 [T, 5], in one all-reduce.

        Of sharded parameters the number of zeros and the maximum are NaN: only :data:`SUMS` sums travel.

        Returns:
            float64 [T, 5], or [5] of all together if ``pool``.
        """
        if not self.sharded:
            from rdo_kernels.fused import pooled

            return pooled(moments) if pool else moments
        sums = self._mine(moments[:, :SUMS])
        sums = _all_reduced(sums.sum(0) if pool else sums).to(moments.device)
        return torch.cat([sums, sums.new_full((*sums.shape[:-1], moments.shape[-1] - SUMS), torch.nan)], dim=-1)

    def sum(self, values: Tensor) -> float:
        """The sum of a number for each parameter, [T], over parameters and processes; all of them must ask."""
        return float(_all_reduced(self._mine(values).sum()) if self.sharded else values.sum())

    def sums(self, values: Tensor) -> Tensor:
        """The sums over processes of numbers for each parameter, [T, ...]; all of them must ask."""
        return _all_reduced(self._mine(values)).to(values.device) if self.sharded else values

    def maxima(self, values: Tensor) -> Tensor:
        """The largest that any process has of a number for each parameter, [T]; all of them must ask."""
        if not self.sharded:
            return values
        largest = values.to(self._device, copy=True)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return largest.to(values.device)

    def any(self, values: Iterable[Tensor | None]) -> bool:
        """Whether a number in them is not zero, on any process; all of them must ask."""
        found = any(value is not None and bool(local_part(value).any()) for value in values)
        if self.sharded:
            found = bool(_all_reduced(torch.tensor([float(found)], dtype=torch.float64, device=self._device))[0])
        return found

    def _mine(self, values: Tensor) -> Tensor:
        """Zero in the rows that other processes contribute. Not a product: NaN times zero is not zero."""
        rows = self._contributed.reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(rows, values.to(self._device), values.new_zeros((), device=self._device))

    def _check(self, names: Sequence[str]) -> None:
        described = repr([(name, tuple(p.shape)) for name, p in zip(names, self._parameters, strict=True)])
        digest = int.from_bytes(hashlib.sha256(described.encode()).digest()[:7], "big")
        extremes = torch.tensor([digest, -digest], device=self._device)
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MIN)
        if int(extremes[0]) != -int(extremes[1]):
            raise ConfigError(
                "processes cover different parameters; the rate constraint needs the same names and sizes, in the same "
                f"order, on every rank (rank {torch.distributed.get_rank()} covers {', '.join(names[:3])}, ...)"
            )
        held = torch.tensor([part.numel() for part in self.parts()], dtype=torch.float64)
        counts = _all_reduced(self._mine(held)).tolist()
        for name, parameter, count in zip(names, self._parameters, counts, strict=True):
            if count != parameter.numel():
                raise ConfigError(
                    f"{name}: the parts that processes hold have {int(count):,} weights in all, the parameter has "
                    f"{parameter.numel():,}; is it placed other than by Shard and Replicate, or on a part of the ranks?"
                )


def _contributes(parameter: Tensor) -> bool:
    if not is_sharded(parameter):
        return torch.distributed.get_rank() == 0
    placed = cast(Any, parameter)
    coordinate = placed.device_mesh.get_coordinate()  # None outside of the mesh
    if coordinate is None:
        return False
    return all(at == 0 for at, placement in zip(coordinate, placed.placements, strict=True) if placement.is_replicate())


def _all_reduced(sums: Tensor) -> Tensor:
    torch.distributed.all_reduce(sums)
    return sums


def _initialised() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
