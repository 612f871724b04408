"""What the decoding kernels share: ranks of lanes, symbols to weights, and the rows that a launch is given.

Legend: a launch has one program, one warp, for each segment, and a row of int64 for each program. A row begins with
(symbols, address of the segment, address of its output, address of its first step, column, magic, shift), of which the
last three find the row of a tensor that a symbol belongs to: symbol i of the segment is symbol ``column + i`` after the
beginning of the first row, and so in row ``(2 * (column + i) * magic >> 32) >> shift`` from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from rdo_kernels.streams import Rows, Stream

K = TypeVar("K")

COLUMNS = 7
"""Of a row, before those of a coder."""

TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.int32: tl.int32,
}
INDEX_TYPES = {torch.uint8: tl.uint8, torch.uint16: tl.uint16}
_SYMBOLS = tl.constexpr(tl.int32)


@triton.jit
def count_ones(bits):  # type: ignore[no-untyped-def]
    """How many bits of a uint32 are set. Written as LLVM knows it: it becomes one instruction."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def target_of(row, OUT: tl.constexpr, BY_ROW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a segment's symbols go: (output, steps, column, magic, shift), for :func:`write`."""
    out = tl.load(row + 2).to(tl.pointer_type(OUT))
    steps = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    if BY_ROW:
        return (
            out,
            steps,
            tl.load(row + 4).to(tl.uint32),
            tl.load(row + 5).to(tl.uint32),
            tl.load(row + 6).to(tl.uint32),
        )
    elif OUT == _SYMBOLS:
        return (out,)
    else:
        return (out, tl.load(steps))


@triton.jit
def write(symbols, at, mask, target, OUT: tl.constexpr, BY_ROW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store int32 symbols, or their product with their step as float32, rounded; ``mask`` is None in a full round."""
    if OUT == _SYMBOLS:
        tl.store(target[0] + at, symbols, mask=mask)
    else:
        step = target[1]
        if BY_ROW:
            doubled = 2 * (target[2] + at.to(tl.uint32))
            step = tl.load(target[1] + (tl.umulhi(doubled, target[3]) >> target[4]), mask=mask)
        tl.store(target[0] + at, (symbols.to(tl.float32) * step).to(OUT), mask=mask)


def rows_of(stream: Stream, payload: Tensor, out: Tensor, steps: Rows | None, columns: int) -> NDArray[np.int64]:
    """Rows of a stream's segments, [segments, columns], with what the coders share filled in."""
    starts = np.arange(stream.segments(out.numel()), dtype=np.int64) * stream.segment
    rows = np.zeros((len(starts), columns), np.int64)
    rows[:, 0] = np.minimum(out.numel() - starts, stream.segment)
    rows[:, 1] = payload.data_ptr() + stream.offsets[:-1]
    rows[:, 2] = out.data_ptr() + out.element_size() * starts
    if steps is not None:
        rows[:, 3] = steps.steps.data_ptr() + 4 * (starts // steps.length)
        rows[:, 4] = starts % steps.length
        rows[:, 5:7] = reciprocal(steps.length)
    return rows


def reciprocal(length: int) -> tuple[int, int]:
    """(magic, shift) such that n // length = (2 n magic >> 32) >> shift for 0 <= n < 2^31, if length is at most 2^30.

    Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
    """
    shift = (length - 1).bit_length()
    return (1 << (31 + shift)) // length + 1, shift


def aligned(payload: Tensor) -> Tensor:
    """The payload, copied unless its words of 4 bytes are aligned."""
    return payload if payload.data_ptr() % 4 == 0 else payload.clone()


def by_row(steps: Sequence[Rows | None]) -> list[bool]:
    """Which outputs have more than one step."""
    return [own is not None and own.steps.numel() > 1 for own in steps]


def grouped(keys: Iterable[K]) -> dict[K, list[int]]:
    """Which streams share what a kernel is compiled for, and so a launch."""
    groups: dict[K, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return groups


def joined(parts: Sequence[NDArray[Any]], device: torch.device) -> tuple[Tensor, list[int]]:
    """Tables as one tensor on the device, and the address of each."""
    table = torch.from_numpy(np.concatenate(parts)).to(device)
    starts = np.cumsum([0, *(part.size for part in parts)])
    return table, [table.data_ptr() + table.element_size() * int(start) for start in starts[:-1]]


class Launch(NamedTuple):
    """A kernel over the segments of several streams, with everything on the device.

    Attributes:
        kernel, constants: what to launch, and what it is compiled for.
        rows: int64 [segments, columns].
        flags: int32 [segments]; 1 where nothing was wrong.
        numbers, sizes: which streams these are, and how many segments each has.
        kept: tensors whose addresses the rows hold.
    """

    kernel: Any
    constants: tuple[Any, ...]
    rows: Tensor
    flags: Tensor
    numbers: list[int]
    sizes: list[int]
    kept: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        kernel: Any,
        constants: tuple[Any, ...],
        parts: Sequence[NDArray[np.int64]],
        numbers: list[int],
        kept: tuple[Tensor, ...],
    ) -> Launch:
        rows = torch.from_numpy(np.concatenate(parts)).to(kept[0].device)
        flags = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        return cls(kernel, constants, rows, flags, numbers, [len(part) for part in parts], kept)

    def run(self) -> None:
        if len(self.rows):
            self.kernel[(len(self.rows),)](self.rows, self.flags, *self.constants, num_warps=1)


def run(launches: Sequence[Launch]) -> list[Tensor]:
    """Launch all; the flags of each stream."""
    flags: dict[int, Tensor] = {}
    for launch in launches:
        launch.run()
        flags.update(zip(launch.numbers, torch.split(launch.flags, launch.sizes), strict=True))
    return [flags[number] for number in sorted(flags)]
