"""Where cells run when not in this process: a pool of processes, or a cluster through submitit."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rdo.errors import ConfigError


class Job(Protocol):
    """A call that was handed to a worker."""

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""

    def result(self) -> Any:
        """What it returned, or raise what it raised."""


class Workers(Protocol):
    """Takes calls of module-level functions, and runs up to ``slots`` of them at once."""

    slots: int

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Job:
        """Start a call; its arguments and result must be picklable, and are exchanged with our own processes only."""
        ...


class ProcessWorkers:
    """Processes on this machine, which share its threads; they end with this process, even if that is killed."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ConfigError(f"--jobs must be 1 or more, got {jobs}")
        self.slots = jobs
        self._pool = self._new_pool()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Job:
        try:
            return self._pool.submit(function, *arguments)
        except BrokenExecutor:  # a worker was killed, and the pool with it
            self._pool = self._new_pool()
            return self._pool.submit(function, *arguments)

    def __enter__(self) -> ProcessWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.slots)
        context = multiprocessing.get_context("spawn")  # forked children would share locks and threads of torch
        return ProcessPoolExecutor(self.slots, context, initializer=_begin, initargs=(threads,))


def cluster_workers(cluster: str, folder: Path, jobs: int, options: dict[str, Any]) -> Workers:
    """Jobs of a cluster, each cell one job, through submitit.

    Args:
        cluster: ``"slurm"``, or ``"local"`` for subprocesses on this machine.
        folder: for scripts and logs; the nodes must see it, and the results, under the same path.
        jobs: how many are queued or running at once.
        options: of submitit's ``update_parameters``, such as ``timeout_min`` and ``slurm_partition``.

    Raises:
        ConfigError: submitit is missing, there is no such cluster, or an option is unknown.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--submit needs submitit; install it with: pip install 'backslash-rdo[slurm]'") from error
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, got {jobs}")
    try:
        executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise ConfigError(f"submitit refuses cluster {cluster!r} with {options}: {error}") from error
    executor.slots = jobs
    workers: Workers = executor
    return workers


def _begin(threads: int) -> None:
    os.environ["NUMBA_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
