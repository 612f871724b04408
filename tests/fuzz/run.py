"""Fuzz what reads streams and files: ``python -m tests.fuzz.run streams --executions 1000000 --seed 1 --seconds 60``.

The target runs in a child process, which leaves each input in shared memory before it executes it, so that an input
on which the process dies or hangs is known. Findings are made smaller and written to ``--out``; any makes the
exit status 1.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import random
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.damage import Damage

SECONDS = 1.0
"""Processor time that one input may take."""
MEMORY_KIB = 128 << 10
"""By which one input may raise the resident memory of the process."""
_LONG = 0.02
"""Seconds by the clock after which an input is executed again for its processor time: to ask for that always would take
longer than most executions."""
_HANG_SECONDS = 30.0
"""Processor time without a new input, compiling included, before the child is killed."""
_SHARED = 1 << 20
_HEAD = struct.Struct("<QI")


@dataclass
class Findings:
    """What a run did: executions, inputs that were read without an error, and what was found."""

    executions: int = 0
    accepted: int = 0
    slowest_seconds: float = 0.0
    peak_growth_kib: int = 0
    found: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, bytes] = field(default_factory=dict)

    def add(self, what: str, data: bytes) -> None:
        self.found[what] += 1
        if what not in self.inputs or len(data) < len(self.inputs[what]):
            self.inputs[what] = data


def target(name: str) -> Damage:
    """``streams`` or ``files``."""
    if name == "streams":
        from tests.fuzz.streams import Streams

        return Streams()
    from tests.fuzz.files import Files

    return Files()


def verdict(damage: Damage, data: bytes, peak: int) -> tuple[str | None, bool, float, int]:
    """What is wrong with an execution, if anything; whether the input was read; seconds; growth of memory in KiB.

    ``peak`` is the memory that the process has had at most, in KiB.
    """
    begin = time.perf_counter()
    what, accepted = _executed(damage, data)
    seconds, growth = time.perf_counter() - begin, _peak() - peak
    if seconds > _LONG:  # others may have had the processor
        begin = time.thread_time()
        _executed(damage, data)
        seconds = time.thread_time() - begin
    if what is None and seconds > SECONDS:
        what = "slow"
    if what is None and growth > MEMORY_KIB:
        what = "memory"
    return what, accepted, seconds, growth


def _executed(damage: Damage, data: bytes) -> tuple[str | None, bool]:
    """The exception that should not be, if there is one, and whether the input was read."""
    try:
        return None, damage.execute(data)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]}", False


def fuzz(name: str, executions: int, seed: int, seconds: float, shared: mmap.mmap | None = None) -> Findings:
    """Execute damaged seeds in this process, the same for the same arguments unless time runs out."""
    damage, chance, findings = target(name), random.Random(seed), Findings()
    seeds = damage.seeds()
    for data in seeds:  # compiles the loops, and warms up memory
        damage.execute(data)
    end, peak = time.monotonic() + seconds, _peak()
    for number in range(executions):
        if not number & 63 and time.monotonic() > end:
            break
        data = damage.mutate(chance, chance.choice(seeds), chance.choice(seeds))
        if shared is not None:
            shared[_HEAD.size : _HEAD.size + len(data)] = data
            shared[: _HEAD.size] = _HEAD.pack(number + 1, len(data))
        what, accepted, took, growth = verdict(damage, data, peak)
        peak += growth
        findings.executions += 1
        findings.accepted += accepted
        findings.slowest_seconds = max(findings.slowest_seconds, took)
        findings.peak_growth_kib = max(findings.peak_growth_kib, growth)
        if what is not None:
            findings.add(what, data)
    return findings


def watched(name: str, executions: int, seed: int, seconds: float) -> Findings:
    """:func:`fuzz` in child processes: one that dies or hangs is a finding, and another one goes on."""
    total, context = Findings(), multiprocessing.get_context("spawn")
    end, round_number = time.monotonic() + seconds, 0
    while total.executions < executions and time.monotonic() < end:
        shared = _Shared()
        ours, theirs = context.Pipe()
        left = executions - total.executions
        child = context.Process(
            target=_child,
            args=(name, left, seed + 1_000_003 * round_number, end - time.monotonic(), shared.path, theirs),
        )
        child.start()
        theirs.close()
        before, since = -1, 0.0
        while not ours.poll(1.0):
            done = shared.done()
            if done != before:
                before, since = done, _processor_seconds(child.pid)
            if child.exitcode is not None or (done and _processor_seconds(child.pid) - since > _HANG_SECONDS):
                break
        try:
            part = ours.recv() if ours.poll() else None
        except EOFError:
            part = None
        if part is None:
            hung = child.exitcode is None and child.is_alive()
            child.kill() if hung else None
            child.join()
            part = Findings(executions=shared.done())
            part.add("hang" if hung else f"the process ended with {child.exitcode}", shared.input())
        child.join()
        shared.close()
        _merge(total, part)
        round_number += 1
    return total


class _Shared:
    """A file in which the child leaves how many inputs it has begun, and the last one."""

    def __init__(self, path: str | None = None) -> None:
        import tempfile

        self.path = path or tempfile.mkstemp(prefix="rdo-fuzz-")[1]
        with open(self.path, "r+b") as file:
            file.truncate(_SHARED)
            self.map = mmap.mmap(file.fileno(), _SHARED)

    def done(self) -> int:
        return int(_HEAD.unpack_from(self.map)[0])

    def input(self) -> bytes:
        return self.map[_HEAD.size : _HEAD.size + _HEAD.unpack_from(self.map)[1]]

    def close(self) -> None:
        self.map.close()
        Path(self.path).unlink()


def _child(name: str, executions: int, seed: int, seconds: float, path: str, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    pipe.send(fuzz(name, executions, seed, seconds, _Shared(path).map))


def _merge(total: Findings, part: Findings) -> None:
    total.executions += part.executions
    total.accepted += part.accepted
    total.slowest_seconds = max(total.slowest_seconds, part.slowest_seconds)
    total.peak_growth_kib = max(total.peak_growth_kib, part.peak_growth_kib)
    total.found += part.found
    for what, data in part.inputs.items():
        if what not in total.inputs or len(data) < len(total.inputs[what]):
            total.inputs[what] = data


def smaller(damage: Damage, what: str, data: bytes) -> bytes:
    """An input of which no stretch of 1 to 64 bytes can be left out so that the finding stays."""
    for length in (64, 16, 4, 1):
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + length :]
            if verdict(damage, shorter, _peak())[0] == what:
                data = shorter
            else:
                at += length
    return data


def _processor_seconds(process: int | None) -> float:
    """Of another process; that the machine is busy with others must not look like a hang."""
    try:
        columns = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or the machine has no such files
        return time.monotonic() if not Path("/proc").exists() else 0.0
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", choices=["streams", "files"])
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="directory for inputs with findings")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    findings = watched(options.target, options.executions, options.seed, options.seconds)
    report: dict[str, Any] = {
        "target": options.target,
        "seed": options.seed,
        "executions": findings.executions,
        "accepted": findings.accepted,
        "wall_seconds": round(time.monotonic() - begin, 1),
        "slowest_processor_seconds": round(findings.slowest_seconds, 4),
        "largest_growth_mib": round(findings.peak_growth_kib / 1024, 1),
        "findings": dict(findings.found),
    }
    for number, (what, data) in enumerate(findings.inputs.items()):
        options.out.mkdir(parents=True, exist_ok=True)
        ended = what.startswith(("hang", "the process", "slow", "memory"))
        (options.out / f"{options.target}-{options.seed}-{number}").write_bytes(
            data if ended else smaller(target(options.target), what, data)
        )
    print(json.dumps(report, indent=1))
    return 1 if findings.found else 0


if __name__ == "__main__":
    sys.exit(main())
