"""The interface of an architecture: builds a module from a seed, and turns text into its input ids."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rdo.errors import ConfigError
from rdo_harness.config import settings

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Kind, Task


@dataclass(frozen=True)
class Architecture(ABC):
    """Options of an architecture; a subclass is a frozen dataclass whose fields are JSON values."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    max_length: int
    """The longest input, in tokens; longer texts are cut."""

    @property
    def title(self) -> str:
        """What rows, tables and figures call it: other for every model of a suite, with a ``width`` of its own too."""
        width, usual = (getattr(of, "width", None) for of in (self, type(self)))
        return self.name if width == usual else f"{self.name}, width {width}"

    @property
    def pad_id(self) -> int:
        """What batches are filled up with behind the end of a text; it is masked and never counts."""
        return 0

    @abstractmethod
    def build(self, seed: int, task: Task) -> torch.nn.Module:
        """Return a new float32 module on the CPU, in training mode, its random weights a function of ``seed`` alone.

        It is called as ``model(input_ids=..., attention_mask=...)`` with int64 [batch, length] each, the mask optional,
        and returns an object whose ``logits`` are [batch, labels] (classification) or [batch, length, vocabulary].

        Raises:
            ConfigError: the task is of another kind.
            DataError: pretrained weights cannot be had, or do not fit.
        """

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Input ids of each text, at most ``max_length`` of them, special tokens included, without padding."""

    def encode_all(self, text: str) -> list[int]:
        """Input ids of a whole text, however long, without special tokens: of causal architectures."""
        raise ConfigError(f"architecture {self.name!r} does not encode running text")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, of causal architectures; what is no text becomes a replacement character."""
        raise ConfigError(f"architecture {self.name!r} does not write text")

    @property
    def begin_id(self) -> int | None:
        """The token that a model of kind ``"tokens"`` was taught to see first, if it has one."""
        return None

    def compressible(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether methods may compress ``parameter``; the rest (norms, biases) is stored as it is, and counted."""
        return parameter.is_floating_point() and parameter.ndim >= 2

    def config(self) -> dict[str, Any]:
        """Name and options, as JSON values."""
        return {"name": self.name, **settings(self)}


@dataclass(frozen=True)
class ByteArchitecture(Architecture):
    """Base of the causal models whose tokens are the bytes of UTF-8."""

    kind: ClassVar[Kind] = "causal"
    max_length: int = 128

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()[: self.max_length]) for text in texts]

    def encode_all(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off the bars and warnings of loading for the block; who loads looks at the loading info instead."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the bar of GGUF files asks nobody
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator for the block; afterwards the global state is what it was, and no GPU is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
