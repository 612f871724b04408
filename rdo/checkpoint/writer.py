"""Writing compressed checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rdo.checkpoint.container import CODES, Bytes, Entry, bytes_of, crc32c, dtype_name, write_safetensors
from rdo.checkpoint.info import CheckpointInfo, build_info
from rdo.checkpoint.manifest import RAW_CHECKSUMS, RAW_PIECE, Group, Manifest, Record, entry_name
from rdo.checkpoint.spool import Place, Spool
from rdo.checkpoint.threads import Progress, for_each
from rdo.coders import Bitstream, EntropyCoder, make_coders
from rdo.coders.float_bits import FloatBits
from rdo.errors import ConfigError, SymbolOverflowError
from rdo.quantizers import QuantizedTensor, Quantizer, UniformQuantizer, row_length

Compressible = Callable[[str, Tensor], bool]
Coder = EntropyCoder | str


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
    coder: Coder | Sequence[Coder] | None = None,
    lossless: bool = False,
    compressible: Compressible | None = None,
    raw_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> CheckpointInfo:
    """Quantise and entropy-code a model into one file (docs/format.md). The same input gives the same bytes.

    Beyond the tensors it takes memory for one large tensor at a time: bitstreams wait in a temporary file.

    Args:
        model_or_state_dict: tensors of any size, layout and device. Tensors that are the same memory in the same
            layout (tied weights) are stored once. They may be mapped from a file that is larger than memory.
        path: file to write, by custom ``*.rdo``. It is replaced only when the new one is complete and on the disk.
        quantizer: default ``UniformQuantizer(step=2**-8)``.
        coder: an entropy coder or its registered name, default ``"rans"``. Of several, each tensor gets the one that
            takes fewest bytes.
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
            or does not fit ``raw_dtype``; an option is wrong.
        UnknownNameError: no coder has this name.
        NonFiniteWeightsError, SymbolOverflowError: a tensor cannot be quantised, or not be given back in its dtype.
        CheckpointError: the disk is full.
        OSError: the file cannot be written. After any error, ``path`` is what it was.
    """
    import rdo

    if lossless and not (quantizer is None and coder is None):
        raise ConfigError("lossless takes neither a quantizer nor a coder")
    quantizer = quantizer if quantizer is not None else UniformQuantizer()
    coders = make_coders("rans" if coder is None else coder)
    if raw_dtype is not None and not (raw_dtype.is_floating_point and raw_dtype in CODES):
        raise ConfigError(f"raw_dtype must be a floating-point type such as torch.bfloat16, got {raw_dtype}")
    state = model_or_state_dict.state_dict() if isinstance(model_or_state_dict, nn.Module) else model_or_state_dict
    tensors = {name: _checked(name, tensor) for name, tensor in state.items()}
    owners = _owners(tensors)
    choose = compressible if compressible is not None else _is_floating if lossless else is_compressible
    sizes = {name: tensor.numel() for name, tensor in tensors.items() if owners[name] == name}
    with Spool(Path(os.path.realpath(path)).parent) as spool:

        def store(name: str) -> _Coded | _Raw:
            tensor = tensors[name]
            if tensor.numel() and choose(name, tensor):
                part = _keep(name, tensor, spool) if lossless else _code(name, tensor, quantizer, coders, spool)
                if part is not None:
                    return part
            narrowed = tensor.is_floating_point() and tensor.dtype.itemsize >= 2
            return _Raw.of(name, tensor, raw_dtype if raw_dtype is not None and narrowed else tensor.dtype)

        parts = for_each(store, sizes, progress)
        manifest = Manifest(
            {name: parts[name].record if name in parts else owners[name] for name in tensors}, f"rdo {rdo.__version__}"
        )
        entries = [part.entry(name, spool) for name, part in parts.items()]
        checksums = np.array([c for part in parts.values() if isinstance(part, _Raw) for c in part.checksums], "<u4")
        if checksums.size:
            entries.append(Entry(RAW_CHECKSUMS, torch.uint32, (checksums.size,), lambda: [checksums.view(np.uint8)]))
        write_safetensors(path, entries, manifest.to_metadata(), sealed=True)
    lengths = {name: part.place.length for name, part in parts.items() if isinstance(part, _Coded)}
    return build_info(manifest, lengths, os.path.getsize(path))


@dataclass(frozen=True)
class _Coded:
    """A tensor whose stream is in the spool."""

    record: Record
    place: Place

    def entry(self, name: str, spool: Spool) -> Entry:
        return Entry(entry_name(name, self.record), torch.uint8, (self.place.length,), lambda: spool.read(self.place))


@dataclass(frozen=True)
class _Raw:
    """A tensor that is stored as it is, and a checksum for each piece of it."""

    record: Record
    data: Callable[[], Bytes]
    checksums: list[int]

    @classmethod
    def of(cls, name: str, tensor: Tensor, stored: torch.dtype) -> _Raw:
        data = partial(_raw_bytes, name, tensor, stored)
        record = Record(Group(tensor.dtype, stored=stored), tuple(tensor.shape))
        return cls(record, data, [crc32c(piece) for piece in _pieces(data())])

    def entry(self, name: str, spool: Spool) -> Entry:
        stored = self.record.group.stored
        assert stored is not None
        return Entry(entry_name(name, self.record), stored, self.record.size, lambda: _pieces(self.data()))


def _pieces(data: Bytes) -> Iterator[Bytes]:
    for begin in range(0, data.size, RAW_PIECE):
        yield data[begin : begin + RAW_PIECE]


def _code(name: str, tensor: Tensor, quantizer: Quantizer, coders: Sequence[EntropyCoder], spool: Spool) -> _Coded:
    size = tuple(tensor.shape)
    quantized = quantizer.quantize(tensor, name)
    _check_range(name, tensor.dtype, quantized)
    symbols = quantized.symbols.cpu().contiguous().numpy().reshape(-1)
    streams = [(coder.encode(symbols, row_length(size)), coder) for coder in coders]
    stream, coder = min(streams, key=lambda pair: pair[0].nbytes + 8 * len(pair[0].lengths))
    steps = bytes_of(quantized.steps.to(torch.float32))
    head: Bytes = np.concatenate([stream.table, steps, _index(stream)])
    group = Group(tensor.dtype, coder=coder.config(), quantizer=quantizer.config())
    record = Record(group, size, quantized.steps.numel(), stream.table.nbytes, stream.segment_log2, crc32c(head))
    return _Coded(record, spool.append([head, stream.payload]))


def _keep(name: str, tensor: Tensor, spool: Spool) -> _Coded | None:
    """A tensor with all its bits; None if it does not become smaller."""
    width = tensor.dtype.itemsize
    if not _is_floating(name, tensor):
        raise ConfigError(f"{name}: lossless coding takes floating-point numbers of up to 32 bits, got {tensor.dtype}")
    bits = bytes_of(tensor).view(f"<u{width}").astype(np.uint32).view(np.int32)
    coder = FloatBits(8 * width)
    stream = coder.encode(bits)
    head: Bytes = np.concatenate([stream.table, _index(stream)])
    if head.size + stream.payload.size >= tensor.numel() * width:
        return None
    group = Group(tensor.dtype, coder=coder.config())
    record = Record(group, tuple(tensor.shape), 0, stream.table.nbytes, stream.segment_log2, crc32c(head))
    return _Coded(record, spool.append([head, stream.payload]))


def _is_floating(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize <= 4


def _index(stream: Bitstream) -> Bytes:
    """The length and the checksum of each segment, 4 bytes each."""
    ends = np.cumsum(stream.lengths)
    checksums = [crc32c(stream.payload[end - n : end]) for n, end in zip(stream.lengths, ends, strict=True)]
    return np.stack([stream.lengths, np.array(checksums, np.int64)], axis=1).astype("<u4").view(np.uint8).reshape(-1)


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
