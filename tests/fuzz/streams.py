"""Streams of every coder and format version, damaged: each decodes to symbols or raises CoderError.

An input is bytes: the number of a coder, log2 of a segment's size less 12, the number of symbols less 1 (uint16), the
length of the table (uint16), the length of the first segment (uint16); then the table and the segments.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rdo.coders import Bitstream, EntropyCoder, coder_from_config
from rdo.coders.base import CODERS, MAX_SYMBOL
from rdo.coders.float_bits import FloatBits
from rdo.coders.version1 import stream_of_version_1
from rdo.coders.version2 import stream_of_version_2
from rdo.errors import CoderError
from tests.fuzz.damage import Damage

FIXTURES = Path(__file__).parents[1] / "fixtures"
MAX_COUNT = 1 << 14
_HEADER = struct.Struct("<BBHHH")
_CODERS: list[tuple[int, EntropyCoder]] = [
    (version, coder_from_config(config))
    for version in (3, 2, 1)
    for config in [
        *({"name": name} for name in CODERS.names()),
        {"name": "exp_golomb", "mapping": "zigzag", "k": None},
    ]
]


class Streams(Damage):
    """The target; see :class:`tests.fuzz.damage.Damage`."""

    def seeds(self) -> list[bytes]:
        return [*_new_streams(), *_old_streams()]

    def mutate(self, chance: random.Random, seed: bytes, other: bytes) -> bytes:
        data = bytearray(seed)
        for _ in range(1 + int(-2 * np.log2(1 - chance.random())) if chance.random() < 0.5 else 1):
            self.edit(chance, data, other)
        return bytes(data)

    def execute(self, data: bytes) -> bool:
        """Whether it could be decoded.

        Raises:
            Exception: a finding.
        """
        if len(data) < _HEADER.size:
            return False
        number, size, count, table_bytes, cut = _HEADER.unpack_from(data)
        version, coder = _CODERS[number % len(_CODERS)]
        size_log2, count = 12 + size % 19, 1 + count % MAX_COUNT
        rest = np.frombuffer(data, np.uint8, offset=_HEADER.size)
        table, payload = rest[:table_bytes], rest[table_bytes:]
        try:
            if version == 3:
                lengths = np.zeros(-(-count >> size_log2), np.int64)
                lengths[0] = min(cut, payload.size) if len(lengths) > 1 else payload.size
                lengths[-1] += payload.size - lengths.sum()
                symbols = coder.decode(Bitstream(table, payload, lengths, size_log2), count)
            else:
                open_stream = stream_of_version_1 if version == 1 else stream_of_version_2
                symbols = open_stream(coder, table, payload, count).symbols(0, count)
        except CoderError:
            return False
        assert symbols.shape == (count,)
        low, high = int(symbols.min()), int(symbols.max())
        any_bits = isinstance(coder, FloatBits)  # those of a float32
        assert any_bits or -MAX_SYMBOL <= low <= high <= MAX_SYMBOL, f"symbols from {low} to {high}"
        return True


def _input(number: int, stream: Bitstream, count: int) -> bytes:
    first = int(stream.lengths[0])
    head = _HEADER.pack(number, stream.segment_log2 - 12, count - 1, stream.table.size, first)
    return head + stream.table.tobytes() + stream.payload.tobytes()


def _new_streams() -> Iterator[bytes]:
    """Short streams of every coder, with and without escapes, and one of several lanes."""
    random_numbers = np.random.default_rng(0)
    for number, (version, coder) in enumerate(_CODERS):
        if version != 3:
            continue
        for count, scale in [(1, 1.0), (5, 0.0), (40, 0.4), (61, 3.0), (97, 1e6), (251, 0.7), (9001, 0.05)]:
            symbols = np.round(random_numbers.laplace(size=count) * scale).astype(np.int32)
            if count == 251:
                symbols[7] = MAX_SYMBOL
            yield _input(number, coder.encode(symbols), count)


def _old_streams() -> Iterator[bytes]:
    """The shortest streams of the fixtures of versions 1 and 2; longer ones cut, which are malformed."""
    for path in sorted(FIXTURES.glob("v[12]-*.rdo")):
        content = path.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8:begin])
        manifest = json.loads(header["__metadata__"]["rdo"])
        for name, row in manifest["tensors"].items():
            group = manifest["groups"][row[0]] if isinstance(row, list) else {}
            if group.get("kind") != "coded":
                continue
            coder = coder_from_config(group["coder"])
            number = next(i for i, (v, c) in enumerate(_CODERS) if v == manifest["version"] and _alike(c, coder))
            first, last = header[name + "::stream"]["data_offsets"]
            count = int(np.prod(row[1]))
            if count <= MAX_COUNT and last - first <= 2048:
                yield _HEADER.pack(number, 0, count - 1, row[3], 0) + content[begin + first : begin + last]


def _alike(left: EntropyCoder, right: EntropyCoder) -> bool:
    return left.name == right.name and getattr(left, "mapping", None) == getattr(right, "mapping", None)
