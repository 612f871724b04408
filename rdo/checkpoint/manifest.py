"""The manifest: the JSON text in a compressed checkpoint that says what each tensor is. See docs/format.md."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch

from rdo.channels import Axis, channels
from rdo.checkpoint.container import DTYPES, dtype_name
from rdo.coders.segments import SIZES_LOG2
from rdo.errors import CheckpointError, CorruptCheckpointError, UnsupportedVersionError

FORMAT = "rdo-checkpoint"
VERSION = 4
"""The newest. Versions 1 and 2 had other bitstreams and checksums: rdo.checkpoint.older."""
_WITHOUT_CHANNELS = 3
"""Of files that have no steps of rows or columns told in four bits; in all else it is version 4."""
KEY = "rdo"
OLD_CHECKSUM_KEY = "rdo_crc32"
"""Of the manifest, in versions 1 and 2, which had no seal."""
OLD_STEPS = "::steps"
RAW_CHECKSUMS = "::raw_crc32c"
RAW_PIECE = 1 << 20
"""Bytes of a raw tensor that share a checksum."""
INDEX_BYTES = 8
"""Of a segment in the index: its length and its CRC-32C."""
_CODED, _RAW = "::stream", "::raw"
_MAX_EXTENT = 2**62
_MAX_DEPTH = 8
"""Of lists and tables in each other in the configuration of a coder or quantizer."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """What many tensors have in common.

    Attributes:
        dtype: data type that the tensors had when they were saved, and get back.
        coder: configuration of the coder of a coded or lossless group; None in a raw one.
        quantizer: configuration of that of a coded group; None in others.
        stored: data type on disk of a raw group; None in others.
        channels: what has steps told in four bits; None if they are float32 numbers, and in groups that are not coded.
    """

    dtype: torch.dtype
    coder: Config | None = None
    quantizer: Config | None = None
    stored: torch.dtype | None = None
    channels: Axis | None = None

    @property
    def kind(self) -> str:
        """``"raw"``, ``"coded"`` (quantised), or ``"lossless"``: the bits of the weights are the symbols."""
        return "raw" if self.stored is not None else "lossless" if self.quantizer is None else "coded"

    def to_json(self) -> Config:
        described: Config = {"kind": self.kind, "dtype": dtype_name(self.dtype)}
        if self.stored is not None:
            return described | {"stored": dtype_name(self.stored)}
        described["coder"] = self.coder
        if self.quantizer is not None:
            described["quantizer"] = self.quantizer
        return described | ({"channels": self.channels} if self.channels is not None else {})


@dataclass(frozen=True)
class Record:
    """One stored tensor: its group, its size, its share of the steps, and how its stream is divided.

    Attributes:
        steps: number of quantisation steps: 1, or one per row or column; 0 unless coded.
        table_bytes: length of the coder's table at the start of the stream; 0 if raw.
        segment_log2: 2^this symbols are a segment; 0 if raw, and in versions 1 and 2.
        checksum: CRC-32C of the head of the stream; 0 if raw. In versions 1 and 2 zlib.crc32 of the stream
            followed by the steps, or of the raw bytes.
    """

    group: Group
    size: tuple[int, ...]
    steps: int = 0
    table_bytes: int = 0
    segment_log2: int = 0
    checksum: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    @property
    def kind(self) -> str:
        return self.group.kind

    @property
    def segments(self) -> int:
        """Number of segments of the stream, from version 3 on."""
        return 0 if self.kind == "raw" else -(-self.numel >> self.segment_log2)

    @property
    def scale_bytes(self) -> int:
        """What the steps take: 4 bytes each, or if they are told in four bits, 4 bytes for all and half a byte each."""
        return 4 * self.steps if self.group.channels is None else 4 + (self.steps + 1) // 2

    @property
    def head_bytes(self) -> int:
        """What precedes the segments in the stream, from version 3 on: the table, the steps, and the index."""
        return self.table_bytes + self.scale_bytes + INDEX_BYTES * self.segments

    @property
    def pieces(self) -> int:
        """Number of checksums of a raw tensor, from version 3 on."""
        return 0 if self.group.stored is None else -(-self.numel * self.group.stored.itemsize // RAW_PIECE)


@dataclass(frozen=True)
class Manifest:
    """Everything that the JSON says. A tied tensor's value in ``tensors`` is the name of the tensor it shares."""

    tensors: dict[str, Record | str]
    writer: str
    version: int = VERSION

    def records(self) -> dict[str, Record]:
        """The stored tensors, in the order of the file's steps."""
        return {name: record for name, record in self.tensors.items() if isinstance(record, Record)}

    def to_metadata(self) -> dict[str, str]:
        """The metadata of the safetensors file: the JSON."""
        groups: list[Config] = []
        rows: dict[str, Any] = {}
        for name, record in self.tensors.items():
            if isinstance(record, str):
                rows[name] = record
                continue
            described = record.group.to_json()
            if described not in groups:
                groups.append(described)
            numbers = [getattr(record, column) for column in _columns(record.kind, self.version)]
            rows[name] = [groups.index(described), list(record.size), *numbers]
        content = {"format": FORMAT, "version": self.version, "writer": self.writer, "groups": groups, "tensors": rows}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return {KEY: text}


def least_version(records: Iterable[Record]) -> int:
    """The oldest version whose readers can read these tensors."""
    return VERSION if any(record.group.channels is not None for record in records) else _WITHOUT_CHANNELS


def entry_name(name: str, record: Record) -> str:
    """Name in the safetensors file: raw tensors keep their own unless it could be mistaken for another entry's."""
    if record.kind != "raw":
        return name + _CODED
    return name + _RAW if "::" in name or name == "__metadata__" else name


def parse_metadata(metadata: Mapping[str, str], where: str, *, sealed: bool) -> Manifest:
    """Read and check the manifest of a file; ``where`` starts every message. The seal, if any, fits the header.

    Raises:
        CheckpointError: the file is no compressed checkpoint.
        CorruptCheckpointError: the manifest is damaged or contradicts itself.
        UnsupportedVersionError: a newer rdo wrote it.
    """
    if KEY not in metadata:
        raise CheckpointError(
            f"{where}: no compressed checkpoint: its metadata has no {KEY!r}; a plain safetensors file is compressed "
            "with `rdo compress`"
        )
    text = metadata[KEY]
    if not sealed and metadata.get(OLD_CHECKSUM_KEY) != f"{zlib.crc32(text.encode()):08x}":
        raise CorruptCheckpointError(f"{where}: the header is damaged (wrong checksum); fetch or write the file again")
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair could not even be printed
        _need(isinstance(content, dict) and content.get("format") == FORMAT, f"its format is not {FORMAT!r}")
        version = content.get("version")
        _need(_is_count(version) and version >= 1, f"bad version {version!r}")
        if version > VERSION:
            raise UnsupportedVersionError(
                f"{where}: format version {version}, written by {content.get('writer')!r}; this rdo reads up to "
                f"version {VERSION}: upgrade rdo"
            )
        _need(sealed == (version > 2), f"version {version} {'with' if sealed else 'without'} a seal")
        _need(isinstance(content.get("writer"), str), "no writer")
        _need(isinstance(content.get("groups"), list), "no list of groups")
        _need(isinstance(content.get("tensors"), dict), "no table of tensors")
        groups = [_group(group, version, f"group {index}") for index, group in enumerate(content["groups"])]
        tensors = {name: _record(row, groups, version, f"tensor {name!r}") for name, row in content["tensors"].items()}
        for name, owner in tensors.items():
            if isinstance(owner, str):
                _need(
                    isinstance(tensors.get(owner), Record), f"tensor {name!r}: tied to {owner!r}, which is not stored"
                )
        return Manifest(tensors, content["writer"], version)
    except UnsupportedVersionError:
        raise
    except (_BadManifestError, ValueError, RecursionError) as error:  # integers of too many digits are a ValueError
        raise CorruptCheckpointError(f"{where}: contradictory header: {error}") from error


class _BadManifestError(Exception):
    """Says what is wrong with a manifest, without the path."""


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _BadManifestError(otherwise)


def _unique(pairs: list[tuple[str, Any]]) -> Config:
    table = dict(pairs)
    _need(len(table) == len(pairs), "a name occurs twice")
    return table


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_EXTENT


def _is_shallow(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner)


def _group(content: Any, version: int, where: str) -> Group:
    _need(isinstance(content, dict), f"{where}: not a table")
    kind, dtype = content.get("kind"), _dtype(content.get("dtype"), where)
    if kind == "raw":
        stored = _dtype(content.get("stored"), where)
        _need(stored == dtype or (stored.is_floating_point and dtype.is_floating_point), f"{where}: bad stored type")
        return Group(dtype, stored=stored)
    _need(kind in ("coded", "lossless"), f"{where}: unknown kind {kind!r}")
    _need(dtype.is_floating_point, f"{where}: {kind} tensors hold floating-point numbers, not {dtype_name(dtype)}")
    for key in ("coder", "quantizer") if kind == "coded" else ("coder",):
        _need(isinstance(content.get(key), dict), f"{where}: no {key}")
        _need(_is_shallow(content[key], _MAX_DEPTH), f"{where}: too deep a {key}")
    if kind == "lossless":
        _need(dtype.itemsize <= 4, f"{where}: lossless tensors are not of {dtype_name(dtype)}")
        return Group(dtype, coder=content["coder"])
    axis = _channels(content, version, where)
    return Group(dtype, coder=content["coder"], quantizer=content["quantizer"], channels=axis)


def _channels(content: Config, version: int, where: str) -> Axis | None:
    if "channels" not in content:
        return None
    _need(version > _WITHOUT_CHANNELS, f"{where}: steps of channels in a file of version {version}")
    found = next((axis for axis in get_args(Axis) if axis == content["channels"]), None)
    _need(found is not None, f"{where}: steps of unknown channels {content['channels']!r}")
    return found


def _dtype(name: Any, where: str) -> torch.dtype:
    _need(isinstance(name, str) and name in DTYPES, f"{where}: unknown data type {name!r}")
    return DTYPES[name]


def _record(row: Any, groups: list[Group], version: int, where: str) -> Record | str:
    if isinstance(row, str):
        return row
    _need(isinstance(row, list) and len(row) >= 2, f"{where}: not a row")
    _need(_is_count(row[0]) and row[0] < len(groups), f"{where}: no group {row[0]!r}")
    group, size, numbers = groups[row[0]], row[1], row[2:]
    _need(isinstance(size, list) and all(map(_is_count, size)), f"{where}: bad size")
    _need(len(size) <= 64 and math.prod(size) <= _MAX_EXTENT, f"{where}: too large")
    columns = _columns(group.kind, version)
    _need(len(numbers) == len(columns) and all(map(_is_count, numbers)), f"{where}: the row does not suit its group")
    record = Record(group, tuple(size), **dict(zip(columns, numbers, strict=True)))
    _need(record.checksum < 2**32, f"{where}: bad checksum")
    if record.kind != "raw":
        steps, count, log2 = record.steps, record.numel, record.segment_log2
        _need(count > 0, f"{where}: an empty tensor cannot be coded")
        _need(
            record.kind == "lossless" or (steps > 0 and count % steps == 0),
            f"{where}: {steps} steps for {count} weights",
        )
        if group.channels is not None:
            held = channels(record.size, group.channels)
            _need(steps == held, f"{where}: {steps} steps for the {held} {group.channels} of the size {size}")
        _need(version < 3 or log2 in SIZES_LOG2, f"{where}: segments of 2^{log2} symbols")
    return record


def _columns(kind: str, version: int) -> list[str]:
    """The numbers of a row, after group and size."""
    if version < 3:
        return ["steps", "table_bytes", "checksum"] if kind == "coded" else ["checksum"]
    stream = ["table_bytes", "segment_log2", "checksum"]
    return {"raw": [], "lossless": stream, "coded": ["steps", *stream]}[kind]
