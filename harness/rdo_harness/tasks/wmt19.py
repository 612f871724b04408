"""Translation from German into English: WMT-19 (Barrault et al., 2019), from the hub or a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness.registries import TASKS
from rdo_harness.tasks.completion import Completion, Pair, with_validation
from rdo_harness.tasks.hub_records import records


@TASKS.register("wmt19")
@dataclass(frozen=True)
class Wmt19(Completion):
    """The official validation part is the test, a tenth of the training part, by a hash, validation.

    Attributes:
        path: a local folder or a data set of the hub with the field ``translation``, a text for each language.
        languages: of the prompt and of the completion.
        train_files: which training files to take, as the beginning of what follows "train"; the first of them alone is
            hundreds of thousands of pairs.
    """

    name: ClassVar[str] = "wmt19"
    version: ClassVar[int] = 1

    path: str = "wmt/wmt19"
    languages: tuple[str, ...] = ("de", "en")
    train_files: str = "-00000"

    def splits(self, source: str) -> dict[str, list[Pair]]:
        first, second = self.languages
        train, test = (
            [Pair(r["translation"][first], r["translation"][second]) for r in records(self.path, split)]
            for split in (f"{first}-{second}/train{self.train_files}", f"{first}-{second}/validation")
        )
        return with_validation(train, test)
