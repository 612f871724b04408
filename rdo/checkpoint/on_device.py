"""Decoding where the tensors are wanted: a GPU takes the streams as they are, many to a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdo.checkpoint.opened import target_dtype
from rdo.checkpoint.threads import Progress, for_each
from rdo.coders.base import KernelDecoder
from rdo.errors import CoderError, ConfigError

if TYPE_CHECKING:
    from rdo.checkpoint.opened import CompressedFile

_TOGETHER = 1 << 26
"""Weights that share a launch: one segment keeps one of the thousands of warps of a GPU busy."""


def device_of(device: torch.device | str) -> torch.device:
    """The device that a caller named.

    Raises:
        ConfigError: there is none of this name.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; take for instance 'cpu' or 'cuda'") from error


def decodes_on(device: torch.device) -> bool:
    """Whether streams are decoded on this device, and not on the CPU for it."""
    from rdo_kernels.gpu.launch import has_triton

    return device.type == "cuda" and has_triton()


def all_tensors_on(
    file: CompressedFile, dtype: torch.dtype | None, device: torch.device, progress: Progress | None
) -> dict[str, Tensor]:
    """All stored tensors of a file, in its order; ``progress`` as for :func:`rdo.load_compressed`."""
    file.check_output(dtype)
    if not decodes_on(device):
        return for_each(lambda name: file.tensor(name, dtype).to(device), file.sizes, progress)
    found: dict[str, Tensor] = {}
    for names in batches(file.sizes):
        found |= tensors_on(file, names, dtype, device)
        if progress is not None:
            progress(sum(file.sizes[name] for name in names))
    return found


def batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Neighbouring tensors that are decoded together, by their numbers of weights."""
    names: list[str] = []
    weights = 0
    for name, size in sizes.items():
        if names and weights + size > _TOGETHER:
            yield names
            names, weights = [], 0
        names.append(name)
        weights += size
    if names:
        yield names


def tensors_on(
    file: CompressedFile, names: Sequence[str], dtype: torch.dtype | None, device: torch.device
) -> dict[str, Tensor]:
    """These stored tensors on a device; what it cannot decode itself is decoded on the CPU and copied.

    Raises:
        CheckpointError: as :meth:`CompressedFile.tensor`.
    """
    file.check_output(dtype)
    kernels = _Kernels(file, dtype, device) if decodes_on(device) else None
    found = {}
    for name in names:
        out = kernels.add(name) if kernels is not None else None
        found[name] = out if out is not None else file.tensor(name, dtype).to(device)
    if kernels is not None:
        kernels.run()
    return found


class _Kernels:
    """Streams that wait on a device to be decoded there."""

    def __init__(self, file: CompressedFile, dtype: torch.dtype | None, device: torch.device) -> None:
        self._file, self._dtype, self._device = file, dtype, device
        self._waiting: dict[str, list[tuple[str, Any, Tensor, Tensor]]] = {"rans": [], "exp_golomb": []}
        self._by_column: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, name: str) -> Tensor | None:
        """The tensor that :meth:`run` will fill; None if no kernel decodes it."""
        from rdo_kernels.decode import DTYPES, RansStream

        record = self._file.records[name]
        dtype = target_dtype(record, self._dtype)
        if record.kind != "coded" or dtype not in DTYPES:
            return None
        with self._file.explained(name):
            stream, steps = self._file.stream(name)
            if not isinstance(stream.decoder, KernelDecoder):
                return None
            payload = torch.from_numpy(stream.fetch(0, len(stream.segments.offsets) - 1)).to(self._device)
            given = stream.decoder.kernel_stream(payload, stream.segments.offsets)
        out = torch.empty(record.size, dtype=dtype, device=self._device)
        kind = "rans" if isinstance(given, RansStream) else "exp_golomb"
        steps = steps.to(self._device)
        if record.group.channels == "columns":
            symbols = out if dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
            self._by_column.append((symbols, steps, out))
            self._waiting[kind].append((name, given, symbols, steps.new_ones(())))
        else:
            self._waiting[kind].append((name, given, out, steps))
        return out

    def run(self) -> None:
        """Decode all that was added, with a launch or a few for each kind of stream."""
        from rdo_kernels.decode import StreamError, decode_exp_golomb, decode_rans

        for kind, decode in (("rans", decode_rans), ("exp_golomb", decode_exp_golomb)):
            names, streams, outs, steps = zip(*self._waiting[kind], strict=True) if self._waiting[kind] else [()] * 4
            try:
                decode(streams, outs, steps, backend="triton")
            except StreamError as error:
                with self._file.explained(names[error.streams[0]]):
                    raise CoderError(f"the payload is truncated or damaged ({error})") from error
        for symbols, of_columns, out in self._by_column:  # a kernel knows no steps but those of stretches of a tensor
            out.copy_(symbols.mul_(of_columns))
