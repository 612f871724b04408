"""What processes tell one another: values of JSON, and bytes. (The object collectives of torch send pickles.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from rdo.errors import CheckpointError

T = TypeVar("T")


def told(value: Any, device: torch.device) -> list[Any]:
    """The value of each process, of JSON, in the order of ranks; all of them must call it.

    Args:
        device: where messages travel: that of the process group's backend.
    """
    message = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor([message.numel()], device=device)
    lengths = [torch.zeros_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    counts = [int(length) for length in lengths]
    messages = [message.new_zeros(max(counts)) for _ in counts]
    messages[dist.get_rank()][: message.numel()] = message
    dist.all_gather(messages, messages[dist.get_rank()].clone())
    return [json.loads(bytes(m[:n].tolist())) for m, n in zip(messages, counts, strict=True)]


def together(make: Callable[[], T], device: torch.device) -> T:
    """What this process makes, once each has made its own; if one fails, all do.

    Raises:
        What ``make`` raises; CheckpointError, which says the same, where another process failed.
    """
    try:
        made = make()
    except Exception as error:
        told(str(error), device)
        raise
    for rank, failure in enumerate(told(None, device)):
        if failure is not None:
            raise CheckpointError(f"rank {rank} stopped: {failure}")
    return made


def send(data: NDArray[np.uint8], device: torch.device) -> None:
    """Send some bytes to rank 0, which must :func:`receive` as many."""
    dist.send(torch.from_numpy(data.copy()).to(device), 0)


def receive(nbytes: int, rank: int, device: torch.device) -> NDArray[np.uint8]:
    """Some bytes that another process sends."""
    message = torch.empty(nbytes, dtype=torch.uint8, device=device)
    dist.recv(message, rank)
    data: NDArray[np.uint8] = message.cpu().numpy()
    return data
