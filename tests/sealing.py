"""Sealed files taken apart and put together again with right checksums, as an attacker would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

Header = dict[str, Any]
Edit = Callable[[Header, dict[str, Any]], None]


def split(path: Path) -> tuple[Header, bytes]:
    """Header and data, both without the seal."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["::seal"]
    return header, content[end:-36]


def join(path: Path, header: Header, data: bytes) -> Path:
    """Write a file with a seal that fits."""
    seal = {"dtype": "U8", "shape": [36], "data_offsets": [len(data), len(data) + 36]}
    text = json.dumps({**header, "::seal": seal}).encode()
    head = len(text).to_bytes(8, "little") + text
    content = head + data + google_crc32c.value(head).to_bytes(4, "little")
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


def forged(good: Path, edit: Edit, data: bytes | None = None) -> Path:
    """A file beside ``good`` whose header and manifest were edited, with other data if they are given."""
    header, content = split(good)
    manifest = json.loads(header["__metadata__"]["rdo"])
    edit(header, manifest)
    header["__metadata__"]["rdo"] = json.dumps(manifest)
    return join(good.with_name("forged.rdo"), header, content if data is None else data)


def with_stream(good: Path, name: str, change: Callable[[bytearray], None]) -> Path:
    """A file in which the stream of a coded tensor was changed, and all checksums after it."""
    header, content = split(good)
    manifest = json.loads(header["__metadata__"]["rdo"])
    row = manifest["tensors"][name]
    steps, table_bytes, log2 = row[-4:-1]
    begin, end = header[f"{name}::stream"]["data_offsets"]
    stream = bytearray(content[begin:end])
    change(stream)
    segments = -(-int(np.prod(row[1])) >> log2)
    index = table_bytes + (4 + -(-steps // 2) if "channels" in manifest["groups"][row[0]] else 4 * steps)
    at = index + 8 * segments
    for place in range(index, index + 8 * segments, 8):
        length = int.from_bytes(stream[place : place + 4], "little")
        stream[place + 4 : place + 8] = google_crc32c.value(bytes(stream[at : at + length])).to_bytes(4, "little")
        at += length
    checksum = google_crc32c.value(bytes(stream[: index + 8 * segments]))

    def edit(_: Header, manifest: dict[str, Any]) -> None:
        manifest["tensors"][name][-1] = checksum

    return forged(good, edit, content[:begin] + bytes(stream) + content[end:])
