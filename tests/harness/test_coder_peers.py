"""Every arm of the comparison of coders gives back what it was given, and one that does not is found out."""

from __future__ import annotations

import lzma
import os
import sys
import zlib as standard_zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rdo_harness.coder_peers import nncodec
from rdo_harness.coder_peers.base import (
    PEERS,
    PER_TENSOR,
    WHOLE,
    Matrix,
    Peer,
    RoundTripError,
    check_same,
    entropy_bytes,
    part_of,
)
from rdo_harness.coder_peers.constriction import Constriction
from rdo_harness.coder_peers.narrow import ESCAPED, INT8, INT16, INT32, narrow, widen
from rdo_harness.coder_peers.own import Own
from rdo_harness.coder_peers.xz import Xz
from rdo_harness.coder_peers.zlib import Zlib
from rdo_harness.coder_peers.zstd import Zstd


def matrix(symbols: object, row_length: int = 1) -> Matrix:
    values = np.asarray(symbols, np.int32)
    return Matrix(values, torch.from_numpy(values * 0.25 + 0.01).float(), 0.25, row_length)


def laplace(count: int, scale: float = 1.5, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).laplace(scale=scale, size=count)).astype(np.int32)


INPUTS = {
    "one symbol": [matrix([5])],
    "one distinct": [matrix([-3] * 97), matrix([0, 0])],
    "odd sizes": [matrix(laplace(n, seed=n)) for n in (1, 2, 97, 4097)],
    "an outlier": [matrix(np.append(laplace(1000), [-128, 437, -70_000]))],
    "wide": [matrix(laplace(500, 400.0)), matrix(laplace(500, 1e6)), matrix([2**30, -(2**30), 7])],
    "rows": [matrix(laplace(96 * 64), 64), matrix(laplace(10 * 65, 0.2), 65)],
}


def installed() -> list[Peer]:
    return [arm for name in PEERS.names() if PEERS.get(name).missing() is None for arm in PEERS.get(name).arms()]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("arm", installed(), ids=lambda arm: arm.label)
def test_round_trips(arm: Peer, name: str, threads: int) -> None:
    if threads > 1 and not arm.threaded:
        pytest.skip("has no threads")
    before = [m.symbols.copy() for m in INPUTS[name]]
    for packing in arm.packings:
        trip = arm.trip(INPUTS[name], packing, threads)  # raises if the symbols differ
        assert trip.nbytes > 0
        assert trip.form.startswith(packing)
        assert trip.encode.wall > 0
        assert trip.decode.wall > 0
    assert all(np.array_equal(old, m.symbols) for old, m in zip(before, INPUTS[name], strict=True))


def test_the_arms_are_all_there_once() -> None:
    labels = [arm.label for name in PEERS.names() for arm in PEERS.get(name).arms()]
    assert len(labels) == len(set(labels))
    golomb = {f"EG{k} {mapping}" for k in range(6) for mapping in ("rank", "zigzag")}
    assert {"rdo rans", "rdo huffman", "rdo fixed_length", "constriction ANS", "zlib -9", "zstd -19"} | golomb <= {
        *labels
    }
    assert {"constriction", "nncodec", "rdo", "xz", "zipnn", "zlib", "zstd"} == set(PEERS.names())


def test_sizes_are_those_of_the_streams_and_their_lengths() -> None:
    matrices = INPUTS["rows"]
    head = 5
    plain = [m.symbols.astype(np.int8).tobytes() for m in matrices]
    deflated = 0
    for data in plain:
        compressor = standard_zlib.compressobj(9, standard_zlib.DEFLATED, -15, 9, standard_zlib.Z_HUFFMAN_ONLY)
        deflated += len(compressor.compress(bytes(head) + data) + compressor.flush()) + 4
    assert Zlib(huffman_only=True).trip(matrices, PER_TENSOR, 1).nbytes == pytest.approx(deflated, abs=4)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    packed = lzma.compress(bytes(head) + plain[0] + bytes(head) + plain[1], lzma.FORMAT_RAW, filters=filters)
    assert Xz().trip(matrices, WHOLE, 1).nbytes == pytest.approx(len(packed) + 4, abs=8)
    coder = Own({"name": "rans"}).trip(matrices, PER_TENSOR, 1)
    from rdo.coders import make_coder

    streams = [make_coder("rans").encode(m.symbols) for m in matrices]
    assert coder.nbytes == sum(stream.nbytes + 4 + 8 * len(stream.lengths) for stream in streams)


def test_constriction_is_at_the_entropy() -> None:
    matrices = [matrix(laplace(200_003, scale)) for scale in (0.3, 2.0)]
    bits = 0.0
    for m in matrices:
        counts = np.unique(m.symbols, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    assert entropy_bytes(matrices) == pytest.approx(bits / 8, rel=1e-12)
    over = Constriction().trip(matrices, PER_TENSOR, 1).nbytes / entropy_bytes(matrices)
    assert 1.0 < over < 1.002


@pytest.mark.parametrize(
    ("symbols", "form"),
    [
        ([], INT8),
        ([-128, 127, 0], INT8),
        ([*range(-128, 128), *[0] * 100, 128, -129], ESCAPED),
        ([-128] * 100 + [2**30], ESCAPED),
        ([128, 0], INT16),
        ([-32768, 32767], INT16),
        ([32768, 0], INT32),
        ([-(2**30), 2**30], INT32),
    ],
)
def test_symbols_become_as_few_bytes_as_they_fit_into(symbols: list[int], form: str) -> None:
    values = np.array(symbols, np.int32)
    data, found = narrow(values)
    back, used = widen(memoryview(data + b"what follows"), values.size)
    assert np.array_equal(back, values)
    assert back.dtype == np.int32
    assert used == len(data)
    escapes = int(((values <= -128) | (values > 127)).sum())
    if form == ESCAPED and escapes > values.size / 64:
        form = INT32 if max(abs(values)) > 32768 else INT16
    assert found == form
    width = {INT8: 1, ESCAPED: 1, INT16: 2, INT32: 4}[found]
    assert len(data) == 5 + width * values.size + (4 * escapes if found == ESCAPED else 0)


def test_a_part_is_whole_rows_from_the_middle_of_every_tensor() -> None:
    whole = [matrix(np.arange(100 * 64), 64), matrix(np.arange(64), 64), matrix(np.arange(10 * 70), 70)]
    part = part_of(whole, 1000)
    assert [m.symbols.size for m in part] == [14 * 64, 64, 2 * 70]
    assert part[0].symbols[0] == 43 * 64
    assert all(torch.equal(m.weights, torch.from_numpy(m.symbols * 0.25 + 0.01).float()) for m in part)
    assert [m.symbols.size for m in part_of(whole, None)] == [6400, 64, 700]
    assert [m.symbols.size for m in part_of(whole, 7164)] == [6400, 64, 700]


def test_a_wrong_symbol_is_found() -> None:
    matrices = [matrix([1, 2]), matrix([3, 4])]
    check_same("x", matrices, [np.array([1, 2], np.int32), np.array([3, 4], np.int32)])
    with pytest.raises(RoundTripError, match="tensor 1"):
        check_same("x", matrices, [np.array([1, 2], np.int32), np.array([3, 5], np.int32)])
    with pytest.raises(RoundTripError, match="tensor 0"):
        check_same("x", matrices, [np.array([1, 2, 0], np.int32), np.array([3, 4], np.int32)])


def test_what_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Zstd, "module", "a_module_that_is_not_there")
    reason = Zstd.missing()
    assert reason is not None
    assert "zstd" in reason
    assert "pip install 'zstandard'" in reason
    monkeypatch.delenv(nncodec.PYTHON, raising=False)
    reason = nncodec.NNCodec.missing()
    assert reason is not None
    assert "pip install" in reason
    monkeypatch.setenv(nncodec.PYTHON, sys.executable + "-that-is-not-there")
    assert "does not run" in (nncodec.NNCodec.missing() or "")


_STUB = """
import io
import numpy as np

def encode(symbols, options):
    assert symbols.dtype == np.int32 and symbols.ndim == 2 and options["use_dq"] is False
    print("noise that is no answer")
    file = io.BytesIO()
    np.save(file, symbols)
    return file.getvalue()

def decode(stream):
    symbols = np.load(io.BytesIO(stream))
    return symbols + (symbols == 99)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_nncodec_is_driven_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library: the streams counted, the shapes given, a wrong symbol and an error reported."""
    (tmp_path / "nncodec").mkdir()
    (tmp_path / "nncodec" / "__init__.py").write_text("")
    (tmp_path / "nncodec" / "tensor.py").write_text(_STUB)
    (tmp_path / "nncodec-0.0.7.dist-info").mkdir()
    (tmp_path / "nncodec-0.0.7.dist-info" / "METADATA").write_text("Name: nncodec\nVersion: 0.0.7\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(nncodec.PYTHON, str(python))
    assert nncodec.NNCodec.missing() is None
    assert nncodec.NNCodec.version().startswith("nncodec 0.0.7, numpy ")
    arm = nncodec.NNCodec()
    symbols = [laplace(10 * 64), laplace(7)]
    trip = arm.trip([matrix(symbols[0], 64), matrix(symbols[1])], PER_TENSOR, 1)
    assert trip.nbytes == 2 * (128 + 4) + 4 * (10 * 64 + 7)
    assert trip.encode.wall > 0
    with pytest.raises(RoundTripError):
        arm.trip([matrix([99, 0])], PER_TENSOR, 1)
    process = nncodec._process(str(python))
    with pytest.raises(nncodec.PeerProcessError, match="FileNotFoundError"):
        nncodec._ask(process, {"folder": str(tmp_path), "tensors": 1, "parameter_search": True})
    process.kill()
    process.wait()
    with pytest.raises(nncodec.PeerProcessError, match="exit code"):
        nncodec._ask(process, {"version": True})
    nncodec._process.cache_clear()


@pytest.mark.skipif(not os.environ.get(nncodec.PYTHON), reason=f"{nncodec.PYTHON} names no environment")
def test_nncodec_keeps_integers_as_they_are() -> None:
    matrices = [matrix(laplace(50 * 384), 384), matrix([0] * 195, 65)]
    sizes = [arm.trip(matrices, PER_TENSOR, 1).nbytes for arm in nncodec.NNCodec.arms()]
    assert all(0.9 < size / entropy_bytes(matrices) < 1.2 for size in sizes)
