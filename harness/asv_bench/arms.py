"""How the benchmarks measure: processor time of arms that take turns in one process, on one thread."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Arm = Callable[[], object]

SHORT = os.environ.get("RDO_BENCH_SHORT", "") not in ("", "0")
"""Whether to prove that a benchmark runs, at a small size, instead of measuring."""
LEAST_SECONDS = 0.008
"""Of a timed sample: an arm that is faster is called several times."""
ROUNDS = 1 if SHORT else 15
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt, from glibc's malloc.h."""


def figure(unit: str, gate: str | None = None, **only: Any) -> Callable[[Any], Any]:
    """Give what a method tracks its unit.

    Args:
        gate: what CI compares it as, a key of ``asv_tools.figures.LIMITS``; None: it does not.
        only: parameters to which CI keeps, for the time it has.
    """

    def decorate(method: Any) -> Any:
        method.unit, method.gate, method.gate_only = unit, gate, only
        return method

    return decorate


@contextmanager
def skipped_where_missing() -> Iterator[None]:
    """Tell asv to skip a benchmark of something that the measured commit does not have."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        raise NotImplementedError(f"not in this commit: {error}") from error


def one_thread() -> None:
    """Measure one thread: its processor time says what work costs on a machine that others use, too."""
    torch.set_num_threads(1)


def milliseconds(arm: Arm) -> float:
    """Median processor time of a call."""
    return statistics.median(row[0] for row in _turns([arm]))


def ratio(ours: Arm, reference: Arm) -> float:
    """Median of the ratios of processor time, each of two samples that followed one another."""
    return statistics.median(mine / theirs for mine, theirs in _turns([ours, reference]))


def _keep_freed_memory() -> None:
    """Let glibc hand freed memory out again, large pieces too.

    By default it returns them to the system or not, as the process has gone before, and getting them back can cost
    eager torch ten times its arithmetic: ratios would be of two kinds.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give freed memory back to the system: what is kept would be used by a call, and not be seen in its peak."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _turns(arms: Sequence[Arm]) -> list[list[float]]:
    """Milliseconds a call of every arm, in each round; warm-up and what it compiles are not counted."""
    _keep_freed_memory()
    calls = [_calls(arm) for arm in arms]
    return [[_sample(arm, count) for arm, count in zip(arms, calls, strict=True)] for _ in range(ROUNDS)]


def _calls(arm: Arm) -> int:
    arm()
    return 1 if SHORT else max(1, math.ceil(LEAST_SECONDS / max(_sample(arm, 1) / 1e3, 1e-6)))


def _sample(arm: Arm, calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        arm()
    return 1e3 * (time.process_time() - started) / calls
