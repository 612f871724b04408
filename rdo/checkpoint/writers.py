"""The processes that write a checkpoint: one alone, or those of a sharded model, each of which codes its share."""

from __future__ import annotations

import hashlib
import heapq
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdo.checkpoint.container import Bytes, Plan
from rdo.checkpoint.manifest import Manifest, entry_name, parse_metadata
from rdo.checkpoint.parts import Part, Sizes, fewest_bytes, sizes_of
from rdo.errors import ConfigError
from rdo.messages import receive, send, together, told
from rdo.sharding import is_sharded, local_part, message_device, whole

_PIECE = 1 << 20


class Writers:
    """Shares out the tensors of a state dict. If some are sharded, all processes must make it and call its methods.

    A process codes whole tensors: the largest goes to the one with the least to do, and so on; those that are not
    sharded go to rank 0, as other processes might have others. Every process holds its own share and, while they are
    gathered, one tensor more.

    Args:
        tensors: by name, plain or DTensors over all processes.

    Attributes:
        owners: for each name the first one of the same memory, see :func:`owners_of`.
        tensors: what this process codes, by the first name, whole; if the state is sharded, on the host.

    Raises:
        ConfigError: the processes have different tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._device = message_device(tensors.values())
        self._ranks: dict[str, int] = {}
        self._incoming: Iterator[Bytes] = iter(())
        self.owners = owners_of(tensors)
        distinct = {name: tensors[name] for name in dict.fromkeys(self.owners.values())}
        if self._device is None:
            self._rank, self.tensors = 0, distinct
            return
        self._rank = torch.distributed.get_rank()
        ranks = _shared_out(distinct, torch.distributed.get_world_size())
        self.tensors = {}
        for name, tensor in distinct.items():
            gathered = whole(tensor)
            if ranks[name] == self._rank:
                self.tensors[name] = gathered.cpu()

    def folder(self, path: str | os.PathLike[str] | None) -> Path:
        """Where this process keeps its bitstreams: beside the file if it writes that, otherwise as ``TMPDIR`` says."""
        return Path(tempfile.gettempdir()) if path is None or self._rank else Path(os.path.realpath(path)).parent

    def joined(self, make: Callable[[], Mapping[str, Sequence[Part]]]) -> dict[str, Part]:
        """The parts of all tensors that make the smallest file, of those among which ``make`` leaves the choice for the
        tensors of this process. Rank 0 can read all of them, once and in the order in which a file has them; the others
        only their own.

        Raises:
            What ``make`` raises; CheckpointError on the processes where it does not, if it does on another.
        """
        if self._device is None:
            choices = make()
            return fewest_bytes(choices, sizes_of(choices))
        choices = together(make, self._device)
        sizes: Sizes = {}
        for theirs in told(sizes_of(choices), self._device):
            sizes |= theirs
        mine = fewest_bytes(choices, sizes)
        message = {
            "manifest": Manifest({name: part.record for name, part in mine.items()}, "").to_metadata(),
            "parts": [[part.nbytes, part.checksums] for part in mine.values()],
        }
        found = dict(mine)
        self._mine = {entry_name(name, part.record) for name, part in mine.items()}
        for rank, theirs in enumerate(told(message, self._device)):
            if rank != self._rank:
                found |= self._foreign(rank, theirs)
        return {name: found[name] for name in self.owners.values() if name in found}

    def write(self, file: Plan, path: str | os.PathLike[str]) -> None:
        """Write a file of these parts: rank 0 does, and the others send it theirs.

        Raises:
            CheckpointError, OSError: as :meth:`Plan.write`, on rank 0; CheckpointError on the others.
        """
        if self._device is None:
            file.write(path)
        else:
            together(lambda: self._receive(file, path) if self._rank == 0 else self._send(file), self._device)

    def _foreign(self, rank: int, theirs: Mapping[str, Any]) -> dict[str, Part]:
        """The parts that another process has told of; their bytes are taken from what it sends."""
        records = parse_metadata(theirs["manifest"], f"rank {rank}", sealed=True).records()
        parts: dict[str, Part] = {}
        for (name, record), (nbytes, checksums) in zip(records.items(), theirs["parts"], strict=True):
            self._ranks[entry_name(name, record)] = rank
            parts[name] = Part(record, nbytes, partial(self._next, -(-nbytes // _PIECE)), tuple(checksums))
        return parts

    def _next(self, pieces: int) -> Iterator[Bytes]:
        return islice(self._incoming, pieces)

    def _send(self, file: Plan) -> None:
        assert self._device is not None
        for entry in file.entries:
            for piece in entry.data() if entry.name in self._mine else ():
                send(piece, self._device)

    def _receive(self, file: Plan, path: str | os.PathLike[str]) -> None:
        """Everything is sent in the order of the file."""
        self._incoming = self._pieces(file)
        try:
            file.write(path)
        except Exception:
            for _ in self._incoming:  # the others wait for it to be taken
                pass
            raise

    def _pieces(self, file: Plan) -> Iterator[Bytes]:
        assert self._device is not None
        for entry in file.entries:
            for begin in range(0, entry.nbytes, _PIECE) if entry.name in self._ranks else ():
                yield receive(min(_PIECE, entry.nbytes - begin), self._ranks[entry.name], self._device)


def owners_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of each piece of memory seen in one layout, for each name; empty tensors share nothing.

    Of sharded tensors rank 0 says it, which holds a part of each; all processes must ask.

    Raises:
        ConfigError: the processes have different tensors.
    """
    first: dict[tuple[object, ...], str] = {}
    owners: dict[str, str] = {}
    for name, tensor in tensors.items():
        part = local_part(tensor)
        key: tuple[object, ...] = (name,)
        if part.numel():
            key = (part.device, part.data_ptr(), part.dtype, tensor.shape, part.stride(), part.is_neg())
        owners[name] = first.setdefault(key, name)
    device = message_device(tensors.values())
    if device is None:
        return owners
    names = list(tensors)
    described = repr([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()])
    digest = hashlib.sha256(described.encode()).hexdigest()
    answers = told([digest, [names.index(owner) for owner in owners.values()]], device)
    if any(other != digest for other, _ in answers):
        raise ConfigError(
            "processes have different tensors; a sharded model is written by all of them, which must give the same "
            f"names, sizes and data types in the same order (rank {torch.distributed.get_rank()} has "
            f"{', '.join(names[:3])}, ...)"
        )
    return {name: names[owner] for name, owner in zip(names, answers[0][1], strict=True)}


def _shared_out(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Which process codes which tensor."""
    ranks = {name: 0 for name, tensor in tensors.items() if not is_sharded(tensor)}
    loads = [(sum(tensors[name].numel() for name in ranks) if rank == 0 else 0, rank) for rank in range(processes)]
    heapq.heapify(loads)
    for name in sorted(tensors.keys() - ranks.keys(), key=lambda name: (-tensors[name].numel(), name)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + tensors[name].numel(), rank))
        ranks[name] = rank
    return ranks
