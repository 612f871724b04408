"""Streams of format version 1, out of the committed files: decoded for ever, and trusted no more than others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from rdo.coders import Bitstream, coder_from_config, make_coder
from rdo.coders.base import Decoder
from rdo.coders.version1 import decoder_of_version_1
from rdo.errors import CoderError
from tests import format_version_1

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = ["v1-rans-row", "v1-rans-tensor", "v1-exp_golomb-rank", "v1-exp_golomb-zigzag"]


def streams(name: str) -> dict[str, tuple[Decoder, Bitstream, NDArray[np.int32]]]:
    """By tensor: what decodes it, its stream, and its symbols according to the second decoder."""
    found = {}
    with safe_open(FIXTURES / f"{name}.rdo", "np") as file:
        manifest = json.loads(file.metadata()["rdo"])
        for tensor, row in manifest["tensors"].items():
            if isinstance(row, list) and len(row) == 5:
                config = manifest["groups"][row[0]]["coder"]
                data = file.get_tensor(f"{tensor}::stream")
                stream = Bitstream(data[: row[3]], data[row[3] :])
                decode = format_version_1.DECODERS[config["name"]]
                symbols = decode(config, stream.table.tobytes(), stream.payload.tobytes(), int(np.prod(row[1])))
                decoder = decoder_of_version_1(coder_from_config(config))
                found[tensor] = decoder, stream, np.array(symbols, np.int32)
    return found


@pytest.mark.parametrize("name", FILES)
def test_streams_are_decoded(name: str) -> None:
    for decoder, stream, symbols in streams(name).values():
        found = decoder.decode(stream, symbols.size)
        assert found.dtype == np.int32
        assert np.array_equal(found, symbols)


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_longer_streams_are_refused(name: str) -> None:
    decoder, stream, symbols = streams(name)["conv.weight"]
    for length in range(stream.table.size):
        with pytest.raises(CoderError):
            decoder.decode(Bitstream(stream.table[:length], stream.payload), symbols.size)
    for length in range(stream.payload.size):
        with pytest.raises(CoderError):
            decoder.decode(Bitstream(stream.table, stream.payload[:length]), symbols.size)
    for table, payload in ((np.uint8(0), []), ([], [np.uint8(0), np.uint8(0)])):
        longer = Bitstream(
            np.append(stream.table, table).astype(np.uint8), np.append(stream.payload, payload).astype(np.uint8)
        )
        with pytest.raises(CoderError):
            decoder.decode(longer, symbols.size)
    for count in (-1, 1, symbols.size - 9, symbols.size + 9, 2**40):
        with pytest.raises(CoderError):
            decoder.decode(stream, count)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tensor", ["small.weight", "conv.weight"])
def test_a_changed_bit_gives_an_error_or_symbols(name: str, tensor: str) -> None:
    decoder, stream, symbols = streams(name)[tensor]
    whole = np.concatenate([stream.table, stream.payload])
    for bit in range(8 * whole.size):
        changed = whole.copy()
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = decoder.decode(Bitstream(changed[: stream.table.size], changed[stream.table.size :]), symbols.size)
        except CoderError:
            continue
        assert found.dtype == np.int32
        assert found.shape == symbols.shape


def test_other_coders_are_what_they_were() -> None:
    for name in ("fixed_length", "huffman"):
        coder = make_coder(name)
        assert decoder_of_version_1(coder) is coder
