"""What the coders compile for a CPU, each against an independent way to the same result."""

from __future__ import annotations

import heapq
import math
import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch

from rdo_kernels.cpu import exp_golomb, frequencies, places, threads

GENERATOR = np.random.default_rng(3)
COUNTS = {
    "one": [5],
    "equal": [7] * 100,
    "ones": [1] * 255,
    "as many as slots": [1] * 200 + [2] * 55 + [10**6],
    "huge": [2**39, 1, 1, 2**20],
    "falling": [2**i for i in range(40)],
    "random": GENERATOR.integers(1, 1000, 77).tolist(),
    "heavy": (1 + GENERATOR.pareto(0.5, 150) * 3).astype(np.int64).clip(1, 10**9).tolist(),
}


@pytest.mark.parametrize("precision", [8, 11, 13])
@pytest.mark.parametrize("name", COUNTS)
def test_no_frequencies_code_shorter(name: str, precision: int) -> None:
    """Slots given one by one to whom they save most, from a heap in float64, are an optimum."""
    counts = COUNTS[name]
    found = frequencies.normalise(np.array(counts), precision)
    assert found.sum() == 1 << precision
    assert found.min() >= 1
    best = [1] * len(counts)
    heap = [(-count * math.log(2), index) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    for _ in range((1 << precision) - len(counts)):
        _, index = heapq.heappop(heap)
        best[index] += 1
        heapq.heappush(heap, (-counts[index] * math.log1p(1 / best[index]), index))

    def bits(shares: list[int]) -> float:
        return sum(count * (precision - math.log2(share)) for count, share in zip(counts, shares, strict=True))

    assert bits(found.tolist()) == pytest.approx(bits(best), rel=1e-12)
    numbers = sum(8 * -(-int(share).bit_length() // 7) for share in found)
    assert frequencies.cost(np.array(counts), precision) == pytest.approx(bits(best) + numbers, rel=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 1001])
def test_counting_and_finding(size: int) -> None:
    symbols = GENERATOR.integers(-5, 9, size).astype(np.int32)
    counts = np.zeros(14, np.int64)
    places.count(symbols, -5, counts)
    assert counts.tolist() == [int((symbols == value).sum()) for value in range(-5, 9)]
    table, found = np.arange(100, 106, dtype=np.uint32), np.empty(size, np.uint32)
    places.find(symbols, -2, table, np.uint32(7), found)
    assert found.tolist() == [102 + symbol if -2 <= symbol < 4 else 7 for symbol in symbols.tolist()]


@pytest.mark.parametrize("lanes", [1, 2, 32])
@pytest.mark.parametrize("k", [0, 1, 15])
def test_exp_golomb_of_every_length(k: int, lanes: int) -> None:
    powers = [2**bits + offset for bits in range(32) for offset in (-1, 0, 1)]
    numbers = np.array([*powers, 2**32 - 2, 0, 0, 2**31], np.uint32)
    bits = np.empty(lanes, np.int64)
    exp_golomb.lane_bits(numbers, k, bits)
    streams = []
    for lane in range(lanes):
        highs = [(number >> k) + 1 for number in numbers[lane::lanes].tolist()]
        lows = [f"{number % 2**k:0{k}b}" if k else "" for number in numbers[lane::lanes].tolist()]
        words = ["0" * (high.bit_length() - 1) + f"{high:b}" + low for high, low in zip(highs, lows, strict=True)]
        streams.append("".join(words))
    assert bits.tolist() == [len(stream) for stream in streams]
    expected = "".join(stream.ljust(-(-len(stream) // 32) * 32, "0") for stream in streams)
    words = np.full(len(expected) // 32 + 3, 0, np.uint32)
    assert exp_golomb.encode(numbers, k, lanes, words) == words.size - 3
    assert "".join(f"{word:032b}" for word in words[:-3]) == expected
    found = np.full(numbers.size, 99, np.uint32)
    assert exp_golomb.decode(words, bits, k, found)
    assert np.array_equal(found, numbers)


def test_threads_keep_the_order_and_raise_the_first_exception() -> None:
    def late(number: int) -> int:
        time.sleep(0.01 / (1 + number))
        if number in (3, 4):
            raise ValueError(f"number {number}")
        return 2 * number

    before = torch.get_num_threads()
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            assert threads.share(late, range(3)) == [0, 2, 4]
            assert threads.share(late, []) == []
            with pytest.raises(ValueError, match="number 3"):
                threads.share(late, range(9))
    finally:
        torch.set_num_threads(before)


def test_nothing_runs_on_after_an_exception() -> None:
    """What still read a file that was closed then, would read and move in the next one with its number."""
    failed, done = threading.Event(), []

    def work(number: int) -> None:
        if number == 0:
            failed.set()
            raise ValueError("number 0")
        failed.wait()
        time.sleep(0.05)
        done.append(number)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="number 0"):
            threads.share(work, range(100))
        after = list(done)
        time.sleep(0.2)
    finally:
        torch.set_num_threads(before)
    assert done == after
    assert len(done) < 10


def _share_in_a_child(queue: multiprocessing.Queue[list[int]]) -> None:
    queue.put(threads.share(abs, [-1, -2, -3]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threads.share(abs, [1, 2, 3])
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_share_in_a_child, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == [1, 2, 3]
        child.join()
    finally:
        torch.set_num_threads(before)
