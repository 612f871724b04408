"""Writing compressed checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rdo.checkpoint.container import CODES, Entry, dtype_name, planned
from rdo.checkpoint.info import CheckpointInfo, build_info
from rdo.checkpoint.manifest import RAW_CHECKSUMS, Manifest, least_version
from rdo.checkpoint.parts import Part, as_it_is, is_floating, kept, quantized
from rdo.checkpoint.spool import Spool
from rdo.checkpoint.threads import Progress, for_each
from rdo.checkpoint.writers import Writers
from rdo.coders import EntropyCoder, make_coders
from rdo.errors import ConfigError
from rdo.modules import state_of
from rdo.quantizers import Quantizer, UniformQuantizer

Compressible = Callable[[str, Tensor], bool]
Coder = EntropyCoder | str
SMALLEST = ("rans", "context")
"""What a file of a given size is coded with by default: each tensor with the one that takes fewer bytes."""


def is_compressible(name: str, tensor: Tensor) -> bool:
    """The default choice: matrices and larger, of floating-point numbers of 16 bits or more.

    Vectors (norms, biases) are few and sensitive, and 8-bit floating-point tensors are quantised already.
    """
    return tensor.is_floating_point() and tensor.dtype.itemsize >= 2 and tensor.ndim >= 2 and tensor.numel() > 0


def save_compressed(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str] | None,
    *,
    quantizer: Quantizer | None = None,
    coder: Coder | Sequence[Coder] | None = None,
    lossless: bool = False,
    compressible: Compressible | None = None,
    raw_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> CheckpointInfo:
    """Quantise and entropy-code a model into one file (docs/format.md). The same input gives the same bytes.

    Beyond the tensors it takes memory for one large tensor at a time: bitstreams, of each coder, wait in a temporary
    file.

    Of a sharded model (DTensors: FSDP2, HSDP, tensor parallelism) all processes must call it. Each codes a share of the
    tensors, rank 0 writes the file, the same as of one process, and all return what was written (docs/scaling.md).

    Args:
        model_or_state_dict: tensors of any size, layout and device. Tensors that are the same memory in the same
            layout (tied weights) are stored once. They may be mapped from a file that is larger than memory.
        path: file to write, by custom ``*.rdo``. It is replaced only when the new one is complete and on the disk. With
            None nothing is written, and what would be is returned.
        quantizer: default ``UniformQuantizer(step=2**-8)``.
        coder: an entropy coder or its registered name, default ``"rans"``. Of several, each tensor gets the one with
            which the file takes fewest bytes.
        lossless: keep every bit instead of quantising; the coder is ``float_bits``.
        compressible: ``(name, tensor) -> bool``, which tensors to code; default :func:`is_compressible`, or if
            ``lossless`` every floating-point tensor that becomes smaller. The others, and empty ones, are stored as
            they are.
        raw_dtype: data type in which floating-point tensors of 16 bits or more that are not coded are stored; default
            their own. They are given back in their own.
        progress: is called, from any thread, with the number of weights done since it was last called.

    Returns:
        What was written, to the byte.

    Raises:
        ConfigError: a tensor cannot be stored (meta, sparse, integer and chosen for coding, of an unknown data type),
            or does not fit ``raw_dtype``; an option is wrong; processes of a sharded model have different tensors.
        UnknownNameError: no coder has this name.
        NonFiniteWeightsError, SymbolOverflowError: a tensor cannot be quantised, or not be given back in its dtype.
        CheckpointError: the disk is full.
        OSError: the file cannot be written. After any error, ``path`` is what it was. An error on one of several
            processes is a CheckpointError on the others.
    """
    import rdo

    if lossless and not (quantizer is None and coder is None):
        raise ConfigError("lossless takes neither a quantizer nor a coder")
    quantizer = quantizer if quantizer is not None else UniformQuantizer()
    coders = make_coders("rans" if coder is None else coder)
    if raw_dtype is not None and not (raw_dtype.is_floating_point and raw_dtype in CODES):
        raise ConfigError(f"raw_dtype must be a floating-point type such as torch.bfloat16, got {raw_dtype}")
    state = state_of(model_or_state_dict)
    writers = Writers({name: _checked(name, tensor) for name, tensor in state.items()})
    choose = compressible if compressible is not None else is_floating if lossless else is_compressible
    with Spool(writers.folder(path)) as spool:

        def store(name: str) -> list[Part]:
            tensor = writers.tensors[name]
            if tensor.numel() and choose(name, tensor):
                if not lossless:
                    return quantized(name, tensor, quantizer, coders, spool)
                part = kept(name, tensor, spool)
                if part is not None:
                    return [part]
            narrowed = tensor.is_floating_point() and tensor.dtype.itemsize >= 2
            return [as_it_is(name, tensor, raw_dtype if raw_dtype is not None and narrowed else tensor.dtype)]

        sizes = {name: tensor.numel() for name, tensor in writers.tensors.items()}
        parts = writers.joined(lambda: for_each(store, sizes, progress))
        records = {name: parts[name].record if name in parts else owner for name, owner in writers.owners.items()}
        version = least_version(part.record for part in parts.values())
        manifest = Manifest(records, f"rdo {rdo.__version__}", version)
        entries = [part.entry(name) for name, part in parts.items()]
        checksums = np.array([checksum for part in parts.values() for checksum in part.checksums], "<u4")
        if checksums.size:
            entries.append(Entry(RAW_CHECKSUMS, torch.uint32, (checksums.size,), lambda: [checksums.view(np.uint8)]))
        file = planned(entries, manifest.to_metadata(), sealed=True)
        if path is not None:
            writers.write(file, path)
    return build_info(manifest, {name: part.nbytes for name, part in parts.items()}, file.file_bytes)


def _checked(name: object, tensor: object) -> Tensor:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ConfigError(f"{name!r}: expected a name and a tensor, got {type(name).__name__}, {type(tensor).__name__}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"tensor {name!r}: the name is not valid Unicode; rename it") from None
    if tensor.is_meta:
        raise ConfigError(f"{name}: a tensor on the meta device has no values; load the weights first")
    if tensor.layout != torch.strided or tensor.dtype not in CODES:
        raise ConfigError(
            f"{name}: cannot store {tensor.layout} {tensor.dtype}; make it dense and convert it to one of "
            f"{', '.join(map(dtype_name, CODES))}"
        )
    return tensor.detach()
