"""Streams of format versions 1 and 2, out of the committed files: decoded for ever, and trusted no more than others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from rdo.coders import EntropyCoder, coder_from_config
from rdo.coders.version1 import stream_of_version_1
from rdo.coders.version2 import stream_of_version_2
from rdo.errors import CoderError
from tests import format_version_1, format_version_2

Bytes = NDArray[np.uint8]
FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = [f"v{v}-{name}" for v in (1, 2) for name in ("rans-row", "rans-tensor", "exp_golomb-rank", "exp_golomb-zigzag")]
FILES += ["v1-huffman", "v1-fixed_length", "v2-rans-segments", "v2-exp_golomb-segments"]
OPEN = {"v1": stream_of_version_1, "v2": stream_of_version_2}
SECOND = {"v1": format_version_1.DECODERS, "v2": format_version_2.DECODERS}


class Old(NamedTuple):
    """A stream as it is in a file of an old version."""

    version: str
    coder: EntropyCoder
    table: Bytes
    payload: Bytes
    symbols: NDArray[np.int32]
    """What the second decoder makes of it."""

    def decode(self, table: Bytes | None = None, payload: Bytes | None = None, count: int | None = None) -> Any:
        table = self.table if table is None else table
        count = self.symbols.size if count is None else count
        return OPEN[self.version](self.coder, table, self.payload if payload is None else payload, count).symbols(
            0, count
        )


def streams(name: str) -> dict[str, Old]:
    """By tensor."""
    found = {}
    with safe_open(FIXTURES / f"{name}.rdo", "np") as file:
        manifest = json.loads(file.metadata()["rdo"])
        for tensor, row in manifest["tensors"].items():
            if isinstance(row, list) and len(row) == 5:
                config = manifest["groups"][row[0]]["coder"]
                data = file.get_tensor(f"{tensor}::stream")
                table, payload, count = data[: row[3]], data[row[3] :], int(np.prod(row[1]))
                symbols = SECOND[name[:2]][config["name"]](config, table.tobytes(), payload.tobytes(), count)
                found[tensor] = Old(name[:2], coder_from_config(config), table, payload, np.array(symbols, np.int32))
    return found


@pytest.mark.parametrize("name", FILES)
def test_streams_are_decoded(name: str) -> None:
    for stream in streams(name).values():
        found = stream.decode()
        assert found.dtype == np.int32
        assert np.array_equal(found, stream.symbols)


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_longer_streams_are_refused(name: str) -> None:
    stream = streams(name)["conv.weight"]
    for length in range(stream.table.size):
        with pytest.raises(CoderError):
            stream.decode(table=stream.table[:length])
    for length in range(stream.payload.size):
        with pytest.raises(CoderError):
            stream.decode(payload=stream.payload[:length])
    with pytest.raises(CoderError):
        stream.decode(table=np.append(stream.table, np.uint8(0)))
    with pytest.raises(CoderError):
        stream.decode(payload=np.append(stream.payload, np.zeros(2, np.uint8)))
    for count in (1, stream.symbols.size - 9, stream.symbols.size + 9, 2**40 + 1):
        with pytest.raises(CoderError):
            stream.decode(count=count)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tensor", ["small.weight", "conv.weight"])
def test_a_changed_bit_gives_an_error_or_symbols(name: str, tensor: str) -> None:
    stream = streams(name)[tensor]
    whole = np.concatenate([stream.table, stream.payload])
    for bit in range(8 * whole.size):
        changed = whole.copy()
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = stream.decode(*np.split(changed, [stream.table.size]))
        except CoderError:
            continue
        assert found.dtype == np.int32
        assert found.shape == stream.symbols.shape
