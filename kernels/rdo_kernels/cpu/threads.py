"""Shares pieces of work out over as many threads as torch uses; compiled loops release Python's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")

_own = threading.local()
"""Of a thread of the pool: ``busy``."""


def share(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """``map``, results in order; of exceptions the first in order is raised, and what has not begun then never begins.

    No piece of work runs on after this has returned or raised: it may use a file that is closed then, whose number
    the process gives to another file.

    A piece of work that shares its own work out does it all by itself: threads do not multiply.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2 or getattr(_own, "busy", False):
        return [function(item) for item in items]

    def work(item: A) -> B:
        _own.busy = True
        try:
            return function(item)
        finally:
            _own.busy = False

    pool = _pool(os.getpid(), threads)
    futures = [pool.submit(work, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # One for the process: tensors that are coded side by side share its threads and do not multiply them. Threads do
    # not survive a fork, so a child process makes its own.
    return ThreadPoolExecutor(threads, f"rdo-{process}")
