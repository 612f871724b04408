"""Flags that are set on a device and looked at when they have arrived, so that no training step waits for them."""

from __future__ import annotations

from typing import Any

import torch


class Alarm:
    """Int32 flags [count]; not 0 is an alarm. On a CPU they are there at once."""

    def __init__(self, count: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.flags = torch.zeros(count, dtype=torch.int32, device=device)
        self._here = torch.zeros(count, dtype=torch.int32, pin_memory=cuda)
        self._arrived: Any = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Send the flags to the host. Not within the capture of a graph."""
        self._here.copy_(self.flags, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def rung(self) -> bool:
        """Whether a flag that has arrived was set."""
        return (self._arrived is None or self._arrived.query()) and bool(self._here.any())


def capturing(device: torch.device) -> bool:
    """Whether the current stream is being captured into a CUDA graph, where the host must neither wait nor look."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
