"""Shares compiled loops out over the threads that torch's own operators use.

After an operator, torch's threads keep spinning for a while, waiting for the next one. Threads of our own would have
to share the cores with them: on two cores that took all of the gain. So the loops run on torch's threads where those
can be had (OpenMP by libgomp: Linux), and on Python's elsewhere.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_MIN_CHUNKS_PER_THREAD = 2
"""Waking a thread costs as much as some 1e4 weights."""


def run(
    action: str,
    chunks: NDArray[np.int64],
    addresses: NDArray[np.int64],
    laws: NDArray[np.float64] | None = None,
    settings: NDArray[np.float64] | None = None,
    bits: NDArray[np.float64] | None = None,
    sums: NDArray[np.float64] | None = None,
    option: int = 0,
) -> None:
    """Run a function of :mod:`rdo_kernels.cpu.loops`, by name, on every chunk. Arrays must be C-contiguous."""
    from rdo_kernels.cpu import loops

    arrays = [chunks, addresses, laws, settings, bits, sums]
    assert all(array is None or array.flags.c_contiguous for array in arrays)
    places = [0 if array is None else array.ctypes.data for array in arrays]
    columns = [0 if array is None else array.shape[1] for array in (addresses, laws, settings)]
    numbers = [0, len(chunks), loops.ACTIONS.index(action), option, len(addresses), *columns]
    job = np.array([*numbers, *places], np.int64)
    share(loops.work, job, len(chunks))


def share(function: Any, job: NDArray[np.int64], chunks: int) -> None:
    """Let threads run one compiled function on one job: each takes chunks, as the job says, until none is left.

    Args:
        function: numba's cfunc ``void (int64 *job)``, such as :func:`rdo_kernels.cpu.loops.work`.
        chunks: how many there are, which limits the threads.
    """
    threads = max(1, min(torch.get_num_threads(), chunks // _MIN_CHUNKS_PER_THREAD))
    parallel = _torch_threads()
    address: Any = function.address
    work = _FUNCTION(address)
    if threads == 1:
        work(job.ctypes.data)
    elif parallel is not None:
        parallel(address, job.ctypes.data, threads, 0)
    else:
        others = [threading.Thread(target=work, args=(job.ctypes.data,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        work(job.ctypes.data)
        for thread in others:
            thread.join()


@cache
def _torch_threads() -> Any:
    """libgomp's ``GOMP_parallel(function, data, threads, flags)`` of the copy that torch brought, or None."""
    if not sys.platform.startswith("linux"):
        return None
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
