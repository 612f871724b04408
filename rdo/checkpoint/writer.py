"""Writing compressed checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rdo.checkpoint.container import CODES, Bytes, Entry, bytes_of, checksum, dtype_name, write_safetensors
from rdo.checkpoint.info import CheckpointInfo, build_info
from rdo.checkpoint.manifest import STEPS, Group, Manifest, Record, entry_name
from rdo.checkpoint.threads import in_threads
from rdo.coders import EntropyCoder, make_coder
from rdo.errors import ConfigError, SymbolOverflowError
from rdo.quantizers import QuantizedTensor, Quantizer, UniformQuantizer

Compressible = Callable[[str, Tensor], bool]
_NO_STEPS: Bytes = np.empty(0, np.uint8)


def is_compressible(name: str, tensor: Tensor) -> bool:
    """The default choice: matrices and larger, of floating-point numbers of 16 bits or more.

    Vectors (norms, biases) are few and sensitive, and 8-bit floating-point tensors are quantised already.
    """
    return tensor.is_floating_point() and tensor.dtype.itemsize >= 2 and tensor.ndim >= 2 and tensor.numel() > 0


def save_compressed(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    quantizer: Quantizer | None = None,
    coder: EntropyCoder | str = "rans",
    compressible: Compressible | None = None,
    raw_dtype: torch.dtype | None = None,
) -> CheckpointInfo:
    """Quantise and entropy-code a model into one file (docs/format.md). The same input gives the same bytes.

    Args:
        model_or_state_dict: tensors of any size, layout and device. Tensors that are the same memory in the same
            layout (tied weights) are stored once.
        path: file to write, by custom ``*.rdo``. It is replaced only when the new one is complete and on the disk.
        quantizer: default ``UniformQuantizer(step=2**-8)``.
        coder: an entropy coder or its registered name.
        compressible: ``(name, tensor) -> bool``, which tensors to code; default :func:`is_compressible`. The others,
            and empty ones, are stored as they are.
        raw_dtype: data type in which floating-point tensors of 16 bits or more that are not coded are stored; default
            their own. They are given back in their own.

    Returns:
        What was written, to the byte.

    Raises:
        ConfigError: a tensor cannot be stored (meta, sparse, integer and chosen for coding, of an unknown data type),
            or does not fit ``raw_dtype``; an option is wrong.
        UnknownNameError: no coder has this name.
        NonFiniteWeightsError, SymbolOverflowError: a tensor cannot be quantised, or not be given back in its dtype.
        CheckpointError: the disk is full.
        OSError: the file cannot be written. After any error, ``path`` is what it was.
    """
    import rdo

    quantizer = quantizer if quantizer is not None else UniformQuantizer()
    coder = make_coder(coder) if isinstance(coder, str) else coder
    if raw_dtype is not None and not (raw_dtype.is_floating_point and raw_dtype in CODES):
        raise ConfigError(f"raw_dtype must be a floating-point type such as torch.bfloat16, got {raw_dtype}")
    state = model_or_state_dict.state_dict() if isinstance(model_or_state_dict, nn.Module) else model_or_state_dict
    tensors = {name: _checked(name, tensor) for name, tensor in state.items()}
    owners = _owners(tensors)
    choose = compressible if compressible is not None else is_compressible
    encode = partial(_encode, quantizer=quantizer, coder=coder, choose=choose, raw_dtype=raw_dtype)
    stored = {name: tensor for name, tensor in tensors.items() if owners[name] == name}
    parts = dict(zip(stored, in_threads(encode, stored.items()), strict=True))

    manifest = Manifest(
        {name: parts[name].record if name in parts else owners[name] for name in tensors}, f"rdo {rdo.__version__}"
    )
    entries = [part.entry(name) for name, part in parts.items()]
    steps = [part.steps for part in parts.values() if part.record.coded]
    if steps:
        scales = np.concatenate(steps)
        entries.append(Entry(STEPS, torch.float32, (scales.size // 4,), lambda: scales))
    write_safetensors(path, entries, manifest.to_metadata())
    lengths = {name: part.data().nbytes for name, part in parts.items() if part.record.coded}
    return build_info(manifest, lengths, os.path.getsize(path))


@dataclass(frozen=True)
class _Part:
    """What is written for one tensor: ``data`` gives its stream or its raw bytes, ``steps`` the bytes of its steps."""

    record: Record
    data: Callable[[], Bytes]
    steps: Bytes

    def entry(self, name: str) -> Entry:
        name, stored = entry_name(name, self.record), self.record.group.stored
        if stored is not None:
            return Entry(name, stored, self.record.size, self.data)
        return Entry(name, torch.uint8, (self.data().nbytes,), self.data)


def _encode(
    item: tuple[str, Tensor],
    *,
    quantizer: Quantizer,
    coder: EntropyCoder,
    choose: Compressible,
    raw_dtype: torch.dtype | None,
) -> _Part:
    name, tensor = item
    size = tuple(tensor.shape)
    if not (tensor.numel() and choose(name, tensor)):
        narrowed = tensor.is_floating_point() and tensor.dtype.itemsize >= 2
        stored = raw_dtype if raw_dtype is not None and narrowed else tensor.dtype
        raw = partial(_raw_bytes, name, tensor, stored)
        return _Part(Record(Group(tensor.dtype, stored=stored), size, 0, 0, checksum(raw())), raw, _NO_STEPS)
    quantized = quantizer.quantize(tensor, name)
    _check_range(name, tensor.dtype, quantized)
    stream = coder.encode(quantized.symbols.cpu().contiguous().numpy().reshape(-1))
    steps = bytes_of(quantized.steps.to(torch.float32))
    joined: Bytes = np.concatenate([stream.table, stream.payload])
    group = Group(tensor.dtype, coder=coder.config(), quantizer=quantizer.config())
    record = Record(group, size, quantized.steps.numel(), stream.table.nbytes, checksum(joined, steps))
    return _Part(record, lambda: joined, steps)


def _raw_bytes(name: str, tensor: Tensor, stored: torch.dtype) -> Bytes:
    cast = tensor.to(stored)
    if stored != tensor.dtype and not torch.equal(cast.to(torch.float64).isfinite(), tensor.isfinite()):
        raise ConfigError(
            f"{name}: the largest value {float(tensor.abs().max()):.4g} does not fit raw_dtype {dtype_name(stored)}; "
            "use bfloat16 or float32"
        )
    return bytes_of(cast)


def _check_range(name: str, dtype: torch.dtype, quantized: QuantizedTensor) -> None:
    """Rounding to a multiple of the step can leave the range of float16, though the weight was in it."""
    largest = int(quantized.symbols.max()), -int(quantized.symbols.min())
    bound = max(largest) * float(quantized.steps.max())
    if bound > torch.finfo(dtype).max and not quantized.dequantize(dtype).to(torch.float32).isfinite().all():
        raise SymbolOverflowError(
            f"{name}: rounded to multiples of the step, its largest weight leaves the range of {dtype_name(dtype)}; "
            "use a smaller step, or do not code this tensor"
        )


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


def _owners(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of each piece of memory seen in one layout; empty tensors share nothing."""
    first: dict[tuple[object, ...], str] = {}
    owners: dict[str, str] = {}
    for name, tensor in tensors.items():
        key: tuple[object, ...] = (name,)
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg())
        owners[name] = first.setdefault(key, name)
    return owners
