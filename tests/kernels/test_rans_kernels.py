"""The compiled loops of rANS against a plain one, at every precision, and against streams that lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdo_kernels.cpu import lanes, rans_lanes, rans_loops

COUNTS = (0, 1, 31, 32, 33, 97, 1021)
PRECISIONS = range(8, 17)
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2,+ssse3",
}
"""A machine without AVX-512."""
SCALAR = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
needs_vectors = pytest.mark.skipif(not lanes.available(), reason="this machine lacks the instructions")


def encode_plainly(
    indices: list[int], frequencies: list[int], precision: int, lane_count: int
) -> tuple[list[int], list[int]]:
    """States and words, one symbol at a time in Python's integers, as docs/coders.md describes them."""
    starts = [sum(frequencies[:k]) for k in range(len(frequencies))]
    states, words = [1 << 16] * lane_count, []
    for i in reversed(range(len(indices))):
        frequency, x = frequencies[indices[i]], states[i % lane_count]
        if x >= frequency << (32 - precision):
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % lane_count] = (x // frequency << precision) + x % frequency + starts[indices[i]]
    return states, words[::-1]


def table(symbols: int, precision: int, seed: int = 0) -> NDArray[np.int64]:
    """Frequencies of very different sizes that sum to 2^precision."""
    generator = np.random.default_rng(seed)
    spare = (1 << precision) - symbols
    shares = generator.dirichlet(np.full(symbols, 0.3))
    extra = np.floor(shares * spare).astype(np.int64)
    extra[np.argmax(extra)] += spare - extra.sum()
    return extra + 1


def draw(frequencies: NDArray[np.int64], count: int, seed: int = 1) -> NDArray[np.uint16]:
    """Indices with these frequencies, each of them at least once where there is room."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(frequencies), count, p=frequencies / frequencies.sum())
    drawn[: len(frequencies)] = np.arange(min(count, len(frequencies)))
    return generator.permutation(drawn).astype(np.uint16)


def encoded(
    indices: NDArray[np.uint16], frequencies: NDArray[np.int64], precision: int, size: int, lane_count: int = 32
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]]]:
    """States, and the words of each segment; nothing outside of the room for words is written."""
    segments = -(-indices.size // size)
    states = np.full((segments, lane_count), 0xDEAD, np.uint32)
    room = np.full(indices.size + 128, 0xBEEF, np.uint16)
    words = room[64 : 64 + indices.size]
    begins = rans_loops.encode(indices, frequencies, precision, size, states, words)
    assert (room[:64] == 0xBEEF).all()
    assert (room[64 + indices.size :] == 0xBEEF).all()
    return states, [words[begin : (i + 1) * size].copy() for i, begin in enumerate(begins)]


def decoded(
    states: NDArray[np.uint32],
    words: list[NDArray[np.uint16]],
    values: NDArray[np.int32],
    frequencies: NDArray[np.int64],
    precision: int,
    size: int,
    count: int,
) -> tuple[bool, NDArray[np.int32]]:
    """Whether the stream is whole, and the symbols; nothing around them is written."""
    room = np.full(count + 128, -77, np.int32)
    ends = np.cumsum([len(part) for part in words], dtype=np.int64)
    begins = ends - [len(part) for part in words]
    together = np.concatenate([*words, np.empty(0, np.uint16)])
    out = room[64 : 64 + count]
    last = states.copy()
    used = rans_loops.decode(together, begins, ends, last, values, frequencies, precision, size, out)
    whole = bool((used == ends).all() and (last == rans_loops.LOW).all())
    assert (room[:64] == -77).all()
    assert (room[64 + count :] == -77).all()
    return whole, out


@pytest.fixture(params=["vectors", "scalars"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "scalars":
        monkeypatch.setattr(lanes, "available", lambda: False)
    elif not lanes.available():
        pytest.skip("this machine lacks the instructions")


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("symbols", [2, 3, 64, 65, 200])
def test_streams_are_those_of_the_plain_loop(precision: int, symbols: int) -> None:
    frequencies = table(symbols, precision)
    values = np.random.default_rng(2).integers(-(2**31), 2**31, symbols).astype(np.int32)
    values[:2] = -(2**31), 2**31 - 1
    for count in COUNTS:
        indices = draw(frequencies, count)
        states, words = encoded(indices, frequencies, precision, 4096)
        if count:
            expected_states, expected_words = encode_plainly(indices.tolist(), frequencies.tolist(), precision, 32)
            assert states[0].tolist() == expected_states
            assert words[0].tolist() == expected_words
        whole, out = decoded(states, words, values, frequencies, precision, 4096, count)
        assert whole
        np.testing.assert_array_equal(out, values[indices])


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("largest", [0, 1])
def test_the_most_unequal_tables(precision: int, largest: int) -> None:
    """Frequencies 1 and 2^p - 1, and a stream of the rare symbol alone, which takes a word for almost every symbol."""
    frequencies = np.array([1, (1 << precision) - 1])
    frequencies = frequencies[::-1].copy() if largest == 0 else frequencies
    values = np.array([-5, 7], np.int32)
    for rare in (False, True):
        indices = np.full(1021, largest ^ rare, np.uint16)
        indices[500] = largest
        states, words = encoded(indices, frequencies, precision, 1024)
        expected_states, expected_words = encode_plainly(indices.tolist(), frequencies.tolist(), precision, 32)
        assert states[0].tolist() == expected_states
        assert words[0].tolist() == expected_words
        whole, out = decoded(states, words, values, frequencies, precision, 1024, 1021)
        assert whole
        np.testing.assert_array_equal(out, values[indices])


@needs_vectors
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("symbols", [15, 64, 65, 250])
@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_vectors_and_scalars_agree_on_long_streams(
    precision: int, symbols: int, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frequencies = table(symbols, precision)
    size, count = 100_000 // segments // 32 * 32 + 32, 100_003
    indices, values = draw(frequencies, count), np.arange(symbols, dtype=np.int32) - 30
    segment_count = -(-count // size)
    states, words = encoded(indices, frequencies, precision, size)
    whole, out = decoded(states, words, values, frequencies, precision, size, count)
    assert whole
    np.testing.assert_array_equal(out, values[indices])
    monkeypatch.setattr(lanes, "available", lambda: False)
    expected_states, expected_words = encoded(indices, frequencies, precision, size)
    np.testing.assert_array_equal(states, expected_states)
    assert len(words) == len(expected_words) == segment_count
    for part, expected in zip(words, expected_words, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("lane_count", [1, 2, 4, 8, 16])
def test_other_numbers_of_lanes(lane_count: int) -> None:
    frequencies, values = table(20, 12), np.arange(20, dtype=np.int32)
    indices = draw(frequencies, 2003)
    states, words = encoded(indices, frequencies, 12, 1000, lane_count)
    for segment in range(3):
        part = indices[segment * 1000 : (segment + 1) * 1000].tolist()
        expected_states, expected_words = encode_plainly(part, frequencies.tolist(), 12, lane_count)
        assert states[segment].tolist() == expected_states
        assert words[segment].tolist() == expected_words
    whole, out = decoded(states, words, values, frequencies, 12, 1000, 2003)
    assert whole
    np.testing.assert_array_equal(out, values[indices])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_division_by_multiplication_is_exact(precision: int) -> None:
    """For every frequency, at the states next to its multiples and at the largest ones."""
    frequencies = np.arange(1, 1 << precision)
    multipliers, shifts = (part.astype(np.uint64) for part in rans_lanes.reciprocals(frequencies, precision))
    assert (multipliers < 1 << 32).all()
    assert (shifts < 32).all()
    unsigned = frequencies.astype(np.uint64)
    quotients = np.random.default_rng(3).integers(0, 1 << (32 - precision), (20, len(frequencies)), dtype=np.uint64)
    quotients[:3] = np.array([[0], [1], [(1 << (32 - precision)) - 1]], np.uint64)
    for rest in (np.zeros_like(unsigned), unsigned // 2, unsigned - 1):
        found = (quotients * unsigned + rest + (shifts >> 4)) * multipliers >> (shifts & 15) + 32
        np.testing.assert_array_equal(found, quotients)


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("symbols", [10, 100])
def test_damaged_streams_are_recognised(symbols: int) -> None:
    frequencies, values = table(symbols, 12), np.arange(symbols, dtype=np.int32)
    indices = draw(frequencies, 5003)
    states, words = encoded(indices, frequencies, 12, 2048)
    generator = np.random.default_rng(4)

    def whole(states: NDArray[np.uint32], words: list[NDArray[np.uint16]]) -> bool:
        return decoded(states, words, values, frequencies, 12, 2048, 5003)[0]

    assert whole(states, words)
    for segment in range(3):
        for cut in (1, 2, 31, 33, len(words[segment])):
            shorter = [part[: len(part) - cut] if i == segment else part for i, part in enumerate(words)]
            assert not whole(states, shorter)
        longer = [np.append(part, np.uint16(0)) if i == segment else part for i, part in enumerate(words)]
        assert not whole(states, longer)
        for _ in range(20):
            damaged = [part.copy() for part in words]
            place = generator.integers(len(damaged[segment]))
            damaged[segment][place] ^= 1 << generator.integers(16)
            assert not whole(states, damaged)
            wrong = states.copy()
            wrong[segment, generator.integers(32)] ^= 1 << generator.integers(32)
            assert not whole(wrong, words)
    for state in (0, 1, 0xFFFF, 2**32 - 1):
        assert not whole(np.full_like(states, state), words)
        assert not whole(np.full_like(states, state), [np.empty(0, np.uint16)] * 3)


def test_arrays_that_do_not_fit_are_refused() -> None:
    frequencies, values = table(5, 8), np.arange(5, dtype=np.int32)
    indices, words = np.zeros(100, np.uint16), np.empty(100, np.uint16)
    states = np.full((2, 32), 1 << 16, np.uint32)
    begins, ends, out = np.array([0, 50]), np.array([50, 100]), np.empty(100, np.int32)
    wrapping = np.array([2**62] * 4 + [256])
    for bad in (frequencies[:-1], frequencies + 1, frequencies * 0, np.array([256]), wrapping):
        with pytest.raises(ValueError, match="frequencies"):
            rans_loops.encode(indices, bad, 8, 64, states, words)
        with pytest.raises(ValueError, match="frequencies"):
            rans_loops.decode(words, begins, ends, states, values, bad, 8, 64, out)
    with pytest.raises(ValueError, match="precision"):
        rans_loops.encode(indices, table(5, 17), 17, 64, states, words)
    with pytest.raises(ValueError, match="segments"):
        rans_loops.encode(indices, frequencies, 8, 32, states, words)
    with pytest.raises(ValueError, match="words"):
        rans_loops.encode(indices, frequencies, 8, 64, states, words[:-1])
    with pytest.raises(ValueError, match="segments"):
        rans_loops.decode(words, begins[:1], ends[:1], states, values, frequencies, 8, 64, out)
    for first, last in ((-1, 100), (0, 101), (51, 100)):
        with pytest.raises(ValueError, match="outside"):
            rans_loops.decode(
                words, np.array([first, 50]), np.array([50, last]), states, values, frequencies, 8, 64, out
            )


@needs_vectors
def test_arrays_with_gaps_are_refused() -> None:
    frequencies, values = table(5, 8), np.arange(5, dtype=np.int32)
    states, spans = np.full((1, 32), 1 << 16, np.uint32), np.zeros(1, np.int64)
    gaps = np.empty(64, np.int32)[::2]
    with pytest.raises(TypeError, match="contiguous"):
        rans_loops.decode(np.empty(0, np.uint16), spans, spans, states, values, frequencies, 8, 32, gaps)


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from rdo_kernels.cpu import lanes, rans_loops
from tests.kernels.test_rans_kernels import draw, table

libc = ctypes.CDLL(None, use_errno=True)

def guarded(count, dtype, before):
    '''An array next to a page that cannot be touched.'''
    page, nbytes = mmap.PAGESIZE, count * np.dtype(dtype).itemsize
    pages = -(-nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbidden = address if before else address + pages * page
    assert libc.mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
    offset = page if before else pages * page - nbytes
    return np.frombuffer(memory, dtype, count, offset)

generator = np.random.default_rng(0)
for symbols in (10, 100):
    frequencies, values = table(symbols, 12), np.arange(symbols, dtype=np.int32)
    for size, count in ((32, 95), (4096, 7001), (64, 64)):
        indices = draw(frequencies, count)
        segments = -(-count // size)
        for before in (False, True):
            states = guarded(32 * segments, np.uint32, before).reshape(segments, 32)
            words = guarded(count, np.uint16, before)
            source = guarded(count, np.uint16, before)
            source[:] = indices
            begins = rans_loops.encode(source, frequencies, 12, size, states, words)
            ends = np.minimum(np.arange(1, segments + 1) * size, count)
            out = guarded(count, np.int32, before)
            out[:] = -1
            last = states.copy()
            used = rans_loops.decode(words, begins, ends, last, values, frequencies, 12, size, out)
            assert (used == ends).all() and (last == rans_loops.LOW).all()
            assert (out == values[indices]).all()
            for attempt in range(30):
                states[:] = generator.integers(0, 2**32, states.shape) >> generator.integers(0, 32)
                length = int(generator.integers(0, count + 1))
                hostile = guarded(length, np.uint16, before) if length else np.empty(0, np.uint16)
                hostile[:] = generator.integers(0, 2**16, length)
                spans = np.sort(generator.integers(0, length + 1, (segments, 2)))
                used = rans_loops.decode(
                    hostile, spans[:, 0].copy(), spans[:, 1].copy(), states, values, frequencies, 12, size, out
                )
                assert (used != spans[:, 1]).any() or (states != rans_loops.LOW).any()
print("done")
"""


def run_python(script: str, **environment: str) -> str:
    """Output of a script in a process of its own."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=variables, check=True
    ).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by way of Linux's C library")
def test_nothing_outside_of_the_arrays_is_touched() -> None:
    """Pages next to every array are forbidden: whoever touches one is killed."""
    assert run_python(GUARDED) == "done"


def test_machines_without_the_instructions_take_the_scalar_loops() -> None:
    script = (
        "from rdo_kernels.cpu import lanes; from tests.kernels.test_rans_kernels import *; "
        "indices = draw(table(9, 10), 999); states, words = encoded(indices, table(9, 10), 10, 512); "
        "values = np.arange(9, dtype=np.int32); "
        "whole, out = decoded(states, words, values, table(9, 10), 10, 512, 999); "
        "print(lanes.available(), whole and (out == indices).all())"
    )
    assert run_python(script, **SCALAR) == "False True"


@pytest.mark.skipif(not lanes.permutes(), reason="this machine is one")
def test_machines_without_avx512_pass_the_same_tests() -> None:
    script = (
        "import pytest; from rdo_kernels.cpu import lanes; assert lanes.available() and not lanes.permutes(); "
        f"raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', {__file__!r}, '-k', "
        "'plain_loop or unequal or damaged or outside or long_streams and 250']))"
    )
    run_python(script, **AVX2)


@needs_vectors
def test_the_compiled_loops_are_cached(tmp_path: Path) -> None:
    script = (
        "from tests.kernels.test_rans_kernels import *; "
        "indices = draw(table(9, 10), 999); states, words = encoded(indices, table(9, 10), 10, 512); "
        "decoded(states, words, np.arange(9, dtype=np.int32), table(9, 10), 10, 512, 999); "
        "stats = [f.stats for f in (rans_lanes.encode, rans_lanes.decode)]; "
        "print(sum(len(s.cache_hits) for s in stats), sum(len(s.cache_misses) for s in stats))"
    )
    assert run_python(script, NUMBA_CACHE_DIR=str(tmp_path)) == "0 2"
    assert run_python(script, NUMBA_CACHE_DIR=str(tmp_path)) == "2 0"
