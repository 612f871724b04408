"""Files that are either the old ones or the new ones, never something in between."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rdo.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | os.PathLike[str], needed_bytes: int) -> Iterator[BinaryIO]:
    """Open a temporary file next to ``path`` that takes its place when the block ends without an exception.

    After any exception, an interrupt included, ``path`` is what it was and the temporary file is gone. Data and
    directory entry are flushed to the disk before the block is left. A symbolic link is followed.

    Args:
        path: the file to create or to replace; its directory must exist.
        needed_bytes: size of the new file, for the message when the disk is full.

    Raises:
        CheckpointError: the disk or the quota is full, or ``path`` exists and is not a regular file.
        OSError: any other failure of the file system.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise CheckpointError(f"cannot write {path}: it exists and is not a regular file; choose another name")
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(6)}.tmp")
    try:
        with explain_full_disk(target.parent, f"cannot write {path}: it needs {needed_bytes:,} bytes"):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_directory(target.parent)


@contextmanager
def explain_full_disk(directory: Path, what: str = "cannot write") -> Iterator[None]:
    """Turn the errors of a full disk or quota into a CheckpointError; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CheckpointError(
                f"{what}: {error.strerror} in {directory}; make room there; what was there before is unchanged"
            ) from error
        raise


def _flush_directory(path: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
