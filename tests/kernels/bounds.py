"""Decodes damaged streams in Triton's interpreter and looks at every address that the kernels read and write.

Run by test_triton_decode.py in a process of its own: the interpreter must be chosen before the kernels are imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

from rdo_harness.kernel_checks.streams import exp_golomb_stream, rans_stream, symbols_of
from rdo_kernels.gpu import exp_golomb, rans
from rdo_kernels.gpu.decoding import Launch
from rdo_kernels.streams import Rows, StreamError

COUNT = 150
CPU = torch.device("cpu")


class Watched:
    """The interpreter's memory, of which only some tensors may be read and some written."""

    def __init__(self, memory: Any, readable: Sequence[Tensor], writable: Sequence[Tensor]) -> None:
        self.memory, self.readable, self.writable = memory, _ranges(readable), _ranges(writable)
        self.reads = 0

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._look(addresses, mask, np.dtype(dtype).itemsize, self.readable)
        self.reads += int(np.sum(mask))
        return self.memory.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, values: Any, mask: Any) -> Any:
        self._look(addresses, mask, values.dtype.itemsize, self.writable)
        return self.memory.store(addresses, values, mask)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def _look(self, addresses: Any, mask: Any, size: int, ranges: NDArray[np.int64]) -> None:
        used = np.broadcast_to(addresses, np.shape(mask))[np.asarray(mask, bool)].astype(np.int64).reshape(-1, 1)
        inside = ((used >= ranges[:, 0]) & (used + size <= ranges[:, 1])).any(1)
        assert inside.all(), f"{int((~inside).sum())} of {inside.size} addresses are out of bounds"


def _ranges(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    return np.array([(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors], np.int64)


@contextmanager
def watching(launches: Sequence[Launch], outs: Sequence[Tensor], steps: Sequence[Rows | None]) -> Iterator[Watched]:
    own = [rows.steps for rows in steps if rows is not None]
    own += [tensor for launch in launches for tensor in (launch.rows, *launch.kept)]
    memory = interpreter._interpreter
    watched = Watched(memory, own, [*outs, *(launch.flags for launch in launches)])
    interpreter._interpreter = watched
    try:
        yield watched
    finally:
        interpreter._interpreter = memory


def damaged(stream: Any, random: np.random.Generator) -> Any:
    """With noise for a part of the payload, segments that begin elsewhere, and other numbers of escapes."""
    payload = stream.payload.clone()
    begin, end = sorted(random.integers(0, len(payload) + 1, 2))
    if random.random() < 0.3:
        payload[begin:end] = int(random.choice([0, 255]))
    else:
        payload[begin:end] = torch.from_numpy(random.integers(0, 256, end - begin).astype(np.uint8))
    offsets = stream.offsets.copy()
    if random.random() < 0.5:
        offsets[1:-1] = 4 * np.sort(random.integers(0, len(payload) // 4, len(offsets) - 2))
    changed = stream._replace(payload=payload, offsets=offsets)
    if getattr(stream, "escaped", None) is not None and random.random() < 0.5:
        changed = changed._replace(escaped=random.integers(0, 40, len(stream.escaped)))
    return changed


def kept_by_the_checks(stream: Any, random: np.random.Generator) -> Any:
    """A damaged stream that a launch would be given."""
    while True:
        found = damaged(stream, random)
        try:
            found.check(COUNT)
        except StreamError:
            continue
        return found


def main() -> None:
    random = np.random.default_rng(0)
    symbols = symbols_of(COUNT, 40.0)
    for module, streams in (
        (rans, [rans_stream(symbols, CPU, segment=64, lanes=lanes, kept=60) for lanes in (8, 32)]),
        (rans, [rans_stream(symbols_of(COUNT, 3e6), CPU, segment=64, kept=1, precision=8)]),  # nearly all escapes
        (exp_golomb, [exp_golomb_stream(symbols, CPU, segment=64, lanes=lanes, k=3) for lanes in (8, 32)]),
        (exp_golomb, [exp_golomb_stream(symbols, CPU, segment=64, ranked=False)]),
    ):
        bad = [kept_by_the_checks(stream, random) for stream in streams for _ in range(5)]
        outs = [torch.empty(COUNT, dtype=torch.float32) for _ in bad]
        steps = [Rows(torch.ones(COUNT // 5), 5) for _ in bad]
        launches = module.launches(bad, outs, steps)
        with watching(launches, outs, steps) as watched:
            for launch in launches:
                launch.run()
        flags = torch.cat([launch.flags for launch in launches])
        assert watched.reads > 20 * len(flags), "nothing was watched"
        assert not flags.all(), "nothing was damaged"
    print("within bounds")


if __name__ == "__main__":
    main()
