"""Compressed checkpoints taken apart, and put together again with every checksum right, as an attacker would."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import google_crc32c

_RAW_PIECE = 1 << 20


@dataclass
class Entry:
    """One entry of a safetensors file; ``shape`` as in the header, None for one axis of as many bytes as there are."""

    dtype: str
    shape: Any
    data: bytearray


@dataclass
class Forgery:
    """A file in parts. ``manifest`` is written as JSON, unless ``text`` stands in its place."""

    manifest: Any
    entries: dict[str, Entry]
    text: str | None = None

    @classmethod
    def of(cls, content: bytes) -> Forgery:
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        manifest = json.loads(header.pop("__metadata__")["rdo"])
        entries = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            shape = None if name.endswith("::stream") else entry["shape"]
            entries[name] = Entry(entry["dtype"], shape, bytearray(content[begin + first : begin + last]))
        return cls(manifest, entries)

    def coded(self) -> list[tuple[str, list[Any]]]:
        """Names and rows of the coded tensors that have a stream."""
        tensors = self.manifest.get("tensors") if isinstance(self.manifest, dict) else None
        rows = tensors.items() if isinstance(tensors, dict) else ()
        return [(name, row) for name, row in rows if isinstance(row, list) and f"{name}::stream" in self.entries]

    def reseal(self) -> None:
        """Make the checksums of streams and raw tensors those of what they hold now, where that has a meaning."""
        version = self.manifest.get("version") if isinstance(self.manifest, dict) else None
        try:
            if version in (3, 4):
                self._reseal_streams()
            elif version in (1, 2):
                self._reseal_old()
        except (TypeError, ValueError, IndexError, KeyError, OverflowError, struct.error, AttributeError):
            pass  # what was done to the manifest leaves no way to tell: it must be refused for that

    def _reseal_streams(self) -> None:
        for name, (group, size, steps, table, log2, _checksum) in self.coded():
            data, count = self.entries[f"{name}::stream"].data, 1
            for extent in size:
                count *= extent
            segments = -(-count >> log2)
            if not 0 < segments < 1000:
                continue
            index = table + (4 + -(-steps // 2) if "channels" in self.manifest["groups"][group] else 4 * steps)
            place = index + 8 * segments
            for number in range(segments):
                [length] = struct.unpack_from("<I", data, index + 8 * number)
                struct.pack_into("<I", data, index + 8 * number + 4, google_crc32c.value(bytes(data[place:][:length])))
                place += length
            self.manifest["tensors"][name][5] = google_crc32c.value(bytes(data[: index + 8 * segments]))
        if "::raw_crc32c" in self.entries:
            raws = [
                self.entries.get(name, self.entries.get(f"{name}::raw"))
                for name, row in self.manifest["tensors"].items()
                if isinstance(row, list) and f"{name}::stream" not in self.entries
            ]
            pieces = [
                raw.data[at : at + _RAW_PIECE] for raw in raws if raw for at in range(0, len(raw.data), _RAW_PIECE)
            ]
            self.entries["::raw_crc32c"].data[:] = b"".join(
                struct.pack("<I", google_crc32c.value(bytes(piece))) for piece in pieces
            )

    def _reseal_old(self) -> None:
        begin = 0
        for name, row in self.manifest["tensors"].items():
            if not isinstance(row, list):
                continue
            stream = self.entries.get(f"{name}::stream")
            if stream is None:
                raw = self.entries.get(name, self.entries.get(f"{name}::raw"))
                row[-1] = zlib.crc32(raw.data) if raw else 0
                continue
            steps = self.entries["::steps"].data[begin : begin + 4 * row[2]]
            begin += 4 * row[2]
            row[-1] = zlib.crc32(steps, zlib.crc32(stream.data))

    def content(self) -> bytes:
        """The file."""
        text = self.text if self.text is not None else json.dumps(self.manifest)
        seal = self.entries.get("::seal")
        header: dict[str, Any] = {"__metadata__": {"rdo": text}}
        if seal is None:
            header["__metadata__"]["rdo_crc32"] = f"{zlib.crc32(text.encode(errors='replace')):08x}"
        offset = 0
        for name, entry in self.entries.items():
            end = offset + len(entry.data)
            shape = [len(entry.data)] if entry.shape is None else entry.shape
            header[name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        return seal_file(
            json.dumps(header).encode(), b"".join(bytes(e.data) for e in self.entries.values()), seal is not None
        )


def seal_file(header: bytes, data: bytes, sealed: bool) -> bytes:
    """A file of this header and these entries, of which the last 36 bytes become a right seal."""
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header
    if not sealed or len(data) < 36:
        return head + data
    content = head + data[:-36] + struct.pack("<I", google_crc32c.value(head))
    return content + hashlib.sha256(content).digest()
