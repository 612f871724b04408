"""Shares pieces of work out over as many threads as torch uses; compiled loops release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def share(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """``map``, results in order. ``function`` must not itself share; of exceptions the first in order is raised."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    return list(_pool(os.getpid(), threads).map(function, items))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # One for the process: tensors that are coded side by side share its threads and do not multiply them. Threads do
    # not survive a fork, so a child process makes its own.
    return ThreadPoolExecutor(threads, f"rdo-{process}")
