"""Spam among e-mails: Enron-Spam (Metsis et al., 2006), from the hub or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification, split_of
from rdo_harness.tasks.hub_records import records


@TASKS.register("enron-spam")
@dataclass(frozen=True)
class EnronSpam(TextClassification):
    """The official split of SetFit's copy; a tenth of its training part is validation, by a hash of the text.

    Attributes:
        path: a local folder or a data set of the hub with the records' fields ``text`` and ``label`` (1 is spam).
    """

    name: ClassVar[str] = "enron-spam"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = 2

    path: str = "SetFit/enron_spam"

    def splits(self, source: str) -> dict[str, list[Example]]:
        train = [Example(record["text"], record["label"]) for record in records(self.path, "train")]
        held_out = [split_of(example.text) == "validation" for example in train]
        return {
            "train": [example for example, out in zip(train, held_out, strict=True) if not out],
            "validation": [example for example, out in zip(train, held_out, strict=True) if out],
            "test": [Example(record["text"], record["label"]) for record in records(self.path, "test")],
        }
