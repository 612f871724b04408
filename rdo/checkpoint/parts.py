"""Tensors on their way into a file: coded, or as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from rdo.checkpoint.container import Bytes, Entry, bytes_of, crc32c, dtype_name
from rdo.checkpoint.manifest import RAW_PIECE, Group, Record, entry_name
from rdo.checkpoint.scales import packed
from rdo.checkpoint.spool import Spool
from rdo.coders import Bitstream, EntropyCoder
from rdo.coders.float_bits import FloatBits
from rdo.errors import ConfigError, SymbolOverflowError
from rdo.quantizers import QuantizedTensor, Quantizer, row_length

Sizes = dict[str, list[tuple[str, int]]]


@dataclass(frozen=True)
class Part:
    """What a file holds of one tensor.

    Attributes:
        nbytes: length of its entry.
        data: the bytes of the entry, in pieces.
        checksums: of each 2^20 bytes if it is stored as it is, otherwise none.
    """

    record: Record
    nbytes: int
    data: Callable[[], Iterator[Bytes]]
    checksums: tuple[int, ...] = ()

    def entry(self, name: str) -> Entry:
        """The entry of the tensor of this name."""
        stored, entry = self.record.group.stored, entry_name(name, self.record)
        if stored is None:
            return Entry(entry, torch.uint8, (self.nbytes,), self.data)
        return Entry(entry, stored, self.record.size, self.data)


def as_it_is(name: str, tensor: Tensor, stored: torch.dtype) -> Part:
    """A tensor converted to a data type, when it is written: its memory is kept.

    Raises:
        ConfigError: its values do not fit that type.
    """
    record = Record(Group(tensor.dtype, stored=stored), tuple(tensor.shape))
    data = partial(_raw_pieces, name, tensor, stored)
    return Part(record, tensor.numel() * stored.itemsize, data, tuple(crc32c(piece) for piece in data()))


def quantized(
    name: str, tensor: Tensor, quantizer: Quantizer, coders: Sequence[EntropyCoder], spool: Spool
) -> list[Part]:
    """A tensor quantised and coded, by each of the coders; the streams are in the spool."""
    size = tuple(tensor.shape)
    found = quantizer.quantize(tensor, name)
    _check_range(name, tensor.dtype, found)
    symbols = found.symbols.cpu().contiguous().numpy().reshape(-1)
    told = quantizer.channel_steps(tensor, name)
    steps = bytes_of(found.steps.to(torch.float32)) if told is None else packed(told)
    channels = None if told is None else told.axis
    parts = []
    for coder in coders:
        stream = coder.encode(symbols, row_length(size))
        head: Bytes = np.concatenate([stream.table, steps, _index(stream)])
        group = Group(tensor.dtype, coder=coder.config(), quantizer=quantizer.config(), channels=channels)
        record = Record(group, size, found.steps.numel(), stream.table.nbytes, stream.segment_log2, crc32c(head))
        parts.append(_spooled(record, [head, stream.payload], spool))
    return parts


def sizes_of(choices: Mapping[str, Sequence[Part]]) -> Sizes:
    """What the header says of the group of each part, and the bytes of the part."""
    return {
        name: [(json.dumps(part.record.group.to_json(), separators=(",", ":")), part.nbytes) for part in choice]
        for name, choice in choices.items()
    }


def fewest_bytes(choices: Mapping[str, Sequence[Part]], sizes: Sizes) -> dict[str, Part]:
    """One part of each tensor, such that the file is smallest.

    The header describes a coder once, which in a small model costs more than it may save. So each set of coders is
    counted; of equal ones the smaller set, then the coders named first.

    Args:
        choices: of each tensor, one part for each coder, or a single one.
        sizes: :func:`sizes_of` all tensors of the file, in the same order for all processes.
    """
    coders = range(max(map(len, sizes.values()), default=1))
    found, least = {}, None
    for count in coders:
        for taken in combinations(coders, count + 1):
            index = {
                name: min(taken, key=lambda coder: choice[coder][1]) if len(choice) > 1 else 0
                for name, choice in sizes.items()
            }
            groups = {sizes[name][at][0] for name, at in index.items()}
            # Their JSON is text within JSON.
            nbytes = sum(sizes[name][at][1] for name, at in index.items()) + sum(len(json.dumps(g)) for g in groups)
            if least is None or nbytes < least:
                found, least = index, nbytes
    return {name: choice[found[name]] for name, choice in choices.items()}


def kept(name: str, tensor: Tensor, spool: Spool) -> Part | None:
    """A tensor with all its bits; None if it does not become smaller."""
    width = tensor.dtype.itemsize
    if not is_floating(name, tensor):
        raise ConfigError(f"{name}: lossless coding takes floating-point numbers of up to 32 bits, got {tensor.dtype}")
    bits = bytes_of(tensor).view(f"<u{width}").astype(np.uint32).view(np.int32)
    coder = FloatBits(8 * width)
    stream = coder.encode(bits)
    head: Bytes = np.concatenate([stream.table, _index(stream)])
    if head.size + stream.payload.size >= tensor.numel() * width:
        return None
    group = Group(tensor.dtype, coder=coder.config())
    record = Record(group, tuple(tensor.shape), 0, stream.table.nbytes, stream.segment_log2, crc32c(head))
    return _spooled(record, [head, stream.payload], spool)


def is_floating(name: str, tensor: Tensor) -> bool:
    """Whether a tensor's bits can be coded."""
    return tensor.is_floating_point() and tensor.dtype.itemsize <= 4


def _spooled(record: Record, stream: Sequence[Bytes], spool: Spool) -> Part:
    place = spool.append(stream)
    return Part(record, place.length, partial(spool.read, place))


def _index(stream: Bitstream) -> Bytes:
    """The length and the checksum of each segment, 4 bytes each."""
    ends = np.cumsum(stream.lengths)
    checksums = [crc32c(stream.payload[end - n : end]) for n, end in zip(stream.lengths, ends, strict=True)]
    return np.stack([stream.lengths, np.array(checksums, np.int64)], axis=1).astype("<u4").view(np.uint8).reshape(-1)


def _raw_pieces(name: str, tensor: Tensor, stored: torch.dtype) -> Iterator[Bytes]:
    cast = tensor.to(stored)
    if stored != tensor.dtype and not torch.equal(cast.to(torch.float64).isfinite(), tensor.isfinite()):
        raise ConfigError(
            f"{name}: the largest value {float(tensor.abs().max()):.4g} does not fit raw_dtype {dtype_name(stored)}; "
            "use bfloat16 or float32"
        )
    data = bytes_of(cast)
    for begin in range(0, data.size, RAW_PIECE):
        yield data[begin : begin + RAW_PIECE]


def _check_range(name: str, dtype: torch.dtype, found: QuantizedTensor) -> None:
    """Rounding to a multiple of the step can leave the range of float16, though the weight was in it."""
    largest = int(found.symbols.max()), -int(found.symbols.min())
    bound = max(largest) * float(found.steps.max())
    if bound > torch.finfo(dtype).max and not found.dequantize(dtype).to(torch.float32).isfinite().all():
        raise SymbolOverflowError(
            f"{name}: rounded to multiples of the step, its largest weight leaves the range of {dtype_name(dtype)}; "
            "use a smaller step, or do not code this tensor"
        )
