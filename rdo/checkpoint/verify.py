"""Checking a whole compressed checkpoint: every checksum, and that everything decodes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rdo.checkpoint.reader import open_compressed
from rdo.checkpoint.threads import Progress, for_each
from rdo.errors import CorruptCheckpointError


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        whole: whether the file has the hash that was written at its end; None for files before format version 3, which
            have none.
        damaged: tensors that are damaged, by name, and what is wrong with each.
    """

    version: int
    tensors: int
    file_bytes: int
    whole: bool | None
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.whole is not False and not self.damaged


def verify_compressed(
    path: str | os.PathLike[str], *, max_output_bytes: int | None = None, progress: Progress | None = None
) -> Verification:
    """Read and decode all of a file, keeping nothing: memory does not grow with its size.

    Args:
        path: a file that :func:`rdo.save_compressed` wrote.
        max_output_bytes: as for :func:`rdo.load_compressed`: a hostile file may declare segments of any size.
        progress: is called, from any thread, with the number of weights done since it was last called.

    Raises:
        CorruptCheckpointError: the header is damaged, so that nothing can be said about the tensors.
        CheckpointError, ConfigError, OSError: as :func:`rdo.load_compressed`.
    """
    with open_compressed(path, max_output_bytes=max_output_bytes) as file:
        file.check_output()

        def check(name: str) -> str | None:
            try:
                file.check(name)
            except CorruptCheckpointError as error:
                return str(error)
            return None

        found = for_each(check, file.sizes, progress)
        damaged = {name: message for name, message in found.items() if message is not None}
        return Verification(file.info.version, len(found), file.info.file_bytes, file.is_whole(), damaged)
