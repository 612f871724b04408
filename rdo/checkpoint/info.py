"""What is in a compressed checkpoint, to the byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

from rdo.checkpoint.container import dtype_name
from rdo.checkpoint.manifest import INDEX_BYTES, Manifest, Record

T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a compressed checkpoint. A tied tensor takes no bytes of its own.

    Attributes:
        kind: ``"coded"``, ``"lossless"``, ``"raw"`` or ``"tied"``.
        dtype: data type that loading gives back; ``stored_dtype`` is that of a raw tensor on disk.
        steps: number of quantisation steps, 1 or one per row or column; 0 unless coded.
        channels: ``"rows"`` or ``"columns"`` if each of these has a step that is told in four bits; otherwise None.
        tied_to: name of the tensor that it shares its memory with.
    """

    name: str
    kind: str
    dtype: str
    size: tuple[int, ...]
    parameters: int
    coder: dict[str, Any] | None = None
    quantizer: dict[str, Any] | None = None
    steps: int = 0
    channels: str | None = None
    stored_dtype: str | None = None
    tied_to: str | None = None
    table_bytes: int = 0
    index_bytes: int = 0
    payload_bytes: int = 0
    scale_bytes: int = 0
    raw_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file that belong to this tensor alone; its share of the header is not among them."""
        return self.table_bytes + self.index_bytes + self.payload_bytes + self.scale_bytes + self.raw_bytes

    @property
    def bits_per_parameter(self) -> float:
        """Stored bits per element, header not included; 0 for tied and empty tensors."""
        return 8.0 * self.stored_bytes / self.parameters if self.parameters and self.kind != "tied" else 0.0


@dataclass(frozen=True)
class CheckpointInfo:
    """A compressed checkpoint's tensors and totals.

    ``header_bytes + table_bytes + index_bytes + payload_bytes + scale_bytes + raw_bytes == file_bytes``, always.

    Attributes:
        parameters: elements of all stored tensors, integers included, tied ones once.
        coded_parameters: those of them that are entropy-coded, quantised or lossless.
        index_bytes: lengths and checksums of the segments.
        header_bytes: all that belongs to no tensor alone; the checksums of raw tensors and of the file are among it.
    """

    tensors: tuple[TensorInfo, ...]
    version: int
    writer: str
    parameters: int
    coded_parameters: int
    header_bytes: int
    table_bytes: int
    index_bytes: int
    payload_bytes: int
    scale_bytes: int
    raw_bytes: int
    file_bytes: int

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the file per parameter, everything included."""
        return 8.0 * self.file_bytes / self.parameters if self.parameters else 0.0

    @property
    def coded_bits_per_parameter(self) -> float:
        """Bits per coded parameter: tables, indices, payloads and scales, without the header."""
        coded = self.table_bytes + self.index_bytes + self.payload_bytes + self.scale_bytes
        return 8.0 * coded / self.coded_parameters if self.coded_parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            **asdict(self),
            "bits_per_parameter": self.bits_per_parameter,
            "coded_bits_per_parameter": self.coded_bits_per_parameter,
            "tensors": [
                {**asdict(tensor), "size": list(tensor.size), "bits_per_parameter": tensor.bits_per_parameter}
                for tensor in self.tensors
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CheckpointInfo:
        """What :meth:`to_json` was made of."""
        tensors = tuple(_made(TensorInfo, {**tensor, "size": tuple(tensor["size"])}) for tensor in values["tensors"])
        return _made(cls, {**values, "tensors": tensors})


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    return kind(**{field.name: values[field.name] for field in fields(cast(Any, kind))})


def build_info(manifest: Manifest, stream_bytes: dict[str, int], file_bytes: int) -> CheckpointInfo:
    """Count everything; ``stream_bytes`` holds the length of the stream of each coded tensor."""
    tensors = tuple(_tensor_info(manifest, name, stream_bytes) for name in manifest.tensors)
    stored = [tensor for tensor in tensors if tensor.kind != "tied"]

    def total(column: str) -> int:
        return sum(getattr(tensor, column) for tensor in stored)

    parts = {
        column: total(column) for column in ("table_bytes", "index_bytes", "payload_bytes", "scale_bytes", "raw_bytes")
    }
    return CheckpointInfo(
        tensors=tensors,
        version=manifest.version,
        writer=manifest.writer,
        parameters=total("parameters"),
        coded_parameters=sum(tensor.parameters for tensor in stored if tensor.coder is not None),
        header_bytes=file_bytes - sum(parts.values()),
        **parts,
        file_bytes=file_bytes,
    )


def _tensor_info(manifest: Manifest, name: str, stream_bytes: dict[str, int]) -> TensorInfo:
    record = manifest.tensors[name]
    if isinstance(record, str):
        owner = manifest.tensors[record]
        assert isinstance(owner, Record)
        return TensorInfo(name, "tied", dtype_name(owner.group.dtype), owner.size, owner.numel, tied_to=record)
    group, dtype = record.group, dtype_name(record.group.dtype)
    if group.stored is not None:
        raw_bytes, stored = record.numel * group.stored.itemsize, dtype_name(group.stored)
        return TensorInfo(name, "raw", dtype, record.size, record.numel, stored_dtype=stored, raw_bytes=raw_bytes)
    index_bytes = INDEX_BYTES * record.segments if manifest.version > 2 else 0
    return TensorInfo(
        name,
        record.kind,
        dtype,
        record.size,
        record.numel,
        coder=group.coder,
        quantizer=group.quantizer,
        steps=record.steps,
        channels=group.channels,
        table_bytes=record.table_bytes,
        index_bytes=index_bytes,
        payload_bytes=stream_bytes[name]
        - record.table_bytes
        - index_bytes
        - (record.scale_bytes if manifest.version > 2 else 0),
        scale_bytes=record.scale_bytes,
    )
