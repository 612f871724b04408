"""Kill a writer of a checkpoint at every call it makes to the file system, before and after it, and at random times.

``python -m tests.killed_writer DIRECTORY --random N`` counts in which state ``DIRECTORY/model.rdo`` was found: ``old``,
``new`` or ``other``. Children are forked from one process without threads, since importing takes seconds.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rdo.files
from rdo import save_compressed


class Watch:
    """Kills this process at moment number ``at``; there is one before each watched call, and one after it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.moment()
            result = function(*arguments, **options)
            self.moment()
            return result

        return call


class File:
    """An unbuffered file whose calls are watched; it writes the first half of what it is given first."""

    def __init__(self, file: Any, watch: Watch) -> None:
        self._file, self._write = file, watch.watched(file.write)
        self.flush, self.fileno = watch.watched(file.flush), file.fileno

    def write(self, data: bytes) -> int:
        middle = len(data) // 2
        return int(self._write(data[:middle]) + self._write(data[middle:]))

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def child(path: Path, state: dict[str, torch.Tensor], at: int) -> int:
    """Fork a process that saves, and is killed at a moment; its number."""
    process = os.fork()
    if not process:
        watch = Watch(at)
        rdo.files.open = lambda *a: File(builtins.open(*a, buffering=0), watch)  # noqa: SIM115
        for name in ("fsync", "replace", "close"):
            setattr(os, name, watch.watched(getattr(os, name)))
        save_compressed(state, path)
        os._exit(0)
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--random", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, chance = options.directory / "model.rdo", random.Random(0)
    states = [{"w": torch.arange(6000.0).reshape(60, 100).sin() * scale, "raw": torch.ones(9)} for scale in (1, 2)]
    contents = []
    for state in states:
        save_compressed(state, path)
        contents.append(path.read_bytes())
    report: Counter[str] = Counter(old=0, new=0, other=0)

    def look() -> None:
        found = path.read_bytes()
        report["old" if found == contents[0] else "new" if found == contents[1] else "other"] += 1

    moment, status = 0, -1
    while status:
        moment += 1
        path.write_bytes(contents[0])
        _, status = os.waitpid(child(path, states[1], moment), 0)
        look()
    report["moments"] = moment - 1
    for _ in range(options.random):
        path.write_bytes(contents[0])
        process = child(path, states[1], 0)
        time.sleep(chance.random() * 0.02)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        look()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
