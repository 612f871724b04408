"""Answers to questions about a text: SQuAD (Rajpurkar et al., 2016), from the hub or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rdo_harness.registries import TASKS
from rdo_harness.tasks.completion import Completion, Pair, with_validation
from rdo_harness.tasks.hub_records import records


@TASKS.register("squad")
@dataclass(frozen=True)
class Squad(Completion):
    """The first answer, given text and question.

    The official validation part is the test, a tenth of the training part, by a hash, validation.

    Attributes:
        path: a local folder or a data set of the hub with the fields ``context``, ``question``, ``answers``.
    """

    name: ClassVar[str] = "squad"
    version: ClassVar[int] = 1

    path: str = "rajpurkar/squad"

    def splits(self, source: str) -> dict[str, list[Pair]]:
        train, test = ([_pair(r) for r in records(self.path, split)] for split in ("train", "validation"))
        return with_validation(train, test)


def _pair(record: dict[str, Any]) -> Pair:
    return Pair(f"{record['context']}\n{record['question']}", record["answers"]["text"][0])
