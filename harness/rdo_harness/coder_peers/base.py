"""What is compared: a coder or compressor that takes the symbols of a checkpoint's matrices and gives them back."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from rdo.coders.base import Histogram, Symbols
from rdo.errors import RdoError
from rdo.registry import Registry

PER_TENSOR, WHOLE = "a stream per tensor", "one stream"
LENGTH_BYTES = 4
"""Counted for each stream: a reader has to know where it ends."""


class RoundTripError(RdoError):
    """What was decoded is not what was encoded."""


@dataclass(frozen=True)
class Matrix:
    """A matrix at an operating point, flat.

    Attributes:
        symbols: int32 [n].
        weights: the original floating-point weights, [n].
        step: the symbols times this are the dequantised weights.
        row_length: symbols in a row.
    """

    symbols: Symbols
    weights: torch.Tensor
    step: float
    row_length: int = 1

    def middle(self, count: int) -> Matrix:
        """Rows from the middle, as many as hold ``count`` symbols, rounded up; at least one.

        Not from the beginning: the first rows of embeddings are those of tokens that no text has.
        """
        rows = self.symbols.size // self.row_length
        kept = min(max(1, -(-count // self.row_length)), rows)
        first = (rows - kept) // 2 * self.row_length
        part = slice(first, first + kept * self.row_length)
        return Matrix(self.symbols[part], self.weights[part], self.step, self.row_length)


def part_of(matrices: Sequence[Matrix], most: int | None) -> list[Matrix]:
    """About ``most`` symbols: of every matrix the same share. None: all of them."""
    count = sum(matrix.symbols.size for matrix in matrices)
    if most is None or count <= most:
        return list(matrices)
    return [matrix.middle(matrix.symbols.size * most // count) for matrix in matrices]


def entropy_bytes(matrices: Sequence[Matrix]) -> float:
    """Sum over the matrices of their number of symbols times their order-0 entropy, in bytes."""
    return sum(Histogram.of(matrix.symbols).entropy_bits() for matrix in matrices) / 8


@dataclass
class Clock:
    """Seconds spent inside :meth:`running`: on the wall, and of all threads of this process on its processors."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass(frozen=True)
class Trip:
    """One encoding and decoding, found lossless.

    Attributes:
        nbytes: of all streams with their tables and lengths.
        form: in which form the symbols were given, in words.
    """

    nbytes: int
    form: str
    encode: Clock = field(default_factory=Clock)
    decode: Clock = field(default_factory=Clock)


@dataclass(frozen=True)
class Peer(ABC):
    """One arm of the comparison; a subclass is a frozen dataclass whose fields are JSON values, its settings.

    Attributes:
        requirement: what ``pip install`` takes to install it; None if it is always there.
        module: what is imported to see whether it is.
        distribution: whose version a row carries; None for that of Python.
        packings: :data:`PER_TENSOR`, :data:`WHOLE` or both, of which the smaller counts.
        threaded: whether the tool has threads of its own (or, for ours, those of a checkpoint).
        footing: ``"symbols"``, or what else was coded; such rows stand apart.
        slow: takes minutes for the symbols of a model, and gets a part of them.
        warms_up: whether its first call compiles something.
    """

    name: ClassVar[str]
    requirement: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    distribution: ClassVar[str | None] = None
    packings: ClassVar[tuple[str, ...]] = (PER_TENSOR,)
    threaded: ClassVar[bool] = False
    warms_up: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def arms(cls) -> list[Peer]:
        """Every setting of the tool that is compared."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name of the arm, unique among all."""

    @property
    def footing(self) -> str:
        return "symbols"

    @property
    def slow(self) -> bool:
        return False

    @abstractmethod
    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        """Encode, decode, and compare.

        Raises:
            RoundTripError: the decoded symbols differ.
        """

    @classmethod
    def missing(cls) -> str | None:
        """None if the tool can run here, otherwise how to install it."""
        try:
            if cls.module is not None:
                importlib.import_module(cls.module)
        except ImportError as error:
            return f"{cls.name} cannot be imported ({error}); install it: pip install '{cls.requirement}'"
        return None

    @classmethod
    def version(cls) -> str:
        """What a row says about the tool's version."""
        import platform

        if cls.distribution is None:
            return f"Python {platform.python_version()}"
        return f"{cls.distribution} {importlib.metadata.version(cls.distribution)}"

    def config(self) -> dict[str, Any]:
        """The settings, JSON-able."""
        return {"name": self.name, **asdict(self)}


def check_same(label: str, matrices: Sequence[Matrix], decoded: Sequence[Symbols]) -> None:
    """Raise RoundTripError unless these are the matrices' symbols."""
    for number, (matrix, symbols) in enumerate(zip(matrices, decoded, strict=True)):
        if symbols.dtype != np.int32 or not np.array_equal(matrix.symbols, symbols):
            raise RoundTripError(f"{label}: decoded symbols of tensor {number} differ from those encoded")


PEERS: Registry[type[Peer]] = Registry("coder peer", package="rdo_harness.coder_peers", group="rdo.coder_peers")
