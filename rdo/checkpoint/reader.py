"""Reading compressed checkpoints. Nothing in the file is trusted before it has been checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rdo.checkpoint.container import open_safetensors
from rdo.checkpoint.info import CheckpointInfo
from rdo.checkpoint.on_device import all_tensors_on, device_of
from rdo.checkpoint.opened import CompressedFile
from rdo.checkpoint.threads import Progress, for_each
from rdo.errors import ConfigError
from rdo.quantizers import QuantizedTensor


def load_compressed(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_output_bytes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Read every tensor of a compressed checkpoint, in the order in which they were saved.

    Args:
        path: a file that :func:`rdo.save_compressed` wrote.
        dtype: data type of all floating-point tensors; default the one that each had when it was saved.
        device: where the tensors are wanted. A CUDA or ROCm GPU decodes the streams of ``rans`` and ``exp_golomb``
            itself if triton is installed; everything else is decoded on the CPU and copied. The weights are the same.
        max_output_bytes: refuse files whose tensors would take more memory than this. A few bytes can stand for any
            number of equal weights, so a limit is always in force; the default is :func:`default_output_limit`.
        progress: is called, from any thread, with the number of weights done since it was last called.

    Returns:
        Tensors by name. Coded ones are exactly ``symbols * step``. Tied ones are one object.

    Raises:
        CorruptCheckpointError: the file is truncated, damaged, or contradicts itself; the message names the tensor.
        UnsupportedVersionError: a newer rdo wrote it.
        CheckpointError: it is another kind of file, a coder is not installed, or it exceeds ``max_output_bytes``.
        ConfigError: it is a pickle, or ``dtype`` is no floating-point type or ``device`` unknown.
        OSError: it cannot be read.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type such as torch.bfloat16, got {dtype}")
    where = device_of(device)
    with open_compressed(path, max_output_bytes=max_output_bytes) as file:
        return file.with_tied(all_tensors_on(file, dtype, where, progress))


def load_quantized(
    path: str | os.PathLike[str], *, max_output_bytes: int | None = None
) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """Read a compressed checkpoint without dequantising: coded tensors as symbols and steps, and the others.

    A tied tensor is in the same dictionary as the one it shares, as the same object. Arguments and errors are those of
    :func:`load_compressed`.
    """
    with open_compressed(path, max_output_bytes=max_output_bytes) as file:
        coded = {name: n for name, n in file.sizes.items() if file.records[name].kind == "coded"}
        quantized = for_each(file.quantized, coded)
        raw = {name: file.tensor(name) for name in file.records if name not in coded}
        return file.with_tied(quantized), file.with_tied(raw)


def inspect_compressed(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Say what is in a compressed checkpoint. Reads and checks the header only: neither streams nor their checksums.

    Raises:
        CheckpointError, OSError: as :func:`load_compressed`.
    """
    with open_compressed(path) as file:
        return file.info


@contextmanager
def open_compressed(path: str | os.PathLike[str], *, max_output_bytes: int | None = None) -> Iterator[CompressedFile]:
    """Open a compressed checkpoint to read it tensor by tensor; arguments and errors are those of
    :func:`load_compressed`. Nothing but the header is read and checked before a tensor is asked for.
    """
    with open_safetensors(path) as container:
        yield CompressedFile(container, max_output_bytes)
