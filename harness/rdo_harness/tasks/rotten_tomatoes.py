"""Sentiment of single sentences: Rotten Tomatoes (Pang and Lee, "Seeing Stars", 2005)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification
from rdo_harness.tasks.imdb import load_reviews


@TASKS.register("rotten-tomatoes")
@dataclass(frozen=True)
class RottenTomatoes(TextClassification):
    """8,530 sentences of film reviews, good or bad, split 70/10/20 by a hash of their text."""

    name: ClassVar[str] = "rotten-tomatoes"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = 2

    def splits(self, source: str) -> dict[str, list[Example]]:
        return load_reviews("rotten_tomatoes", source)
