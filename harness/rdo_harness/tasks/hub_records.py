"""Records of data sets that only the Hugging Face hub has, or of a local folder laid out in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdo.errors import DataError


def records(source: str, split: str) -> list[dict[str, Any]]:
    """All records of a split, from every ``*SPLIT*.jsonl`` or ``*SPLIT*.parquet`` in order of their paths.

    Args:
        source: a local folder, or the name of a data set on the hub; parquet needs the extra ``parquet``.

    Raises:
        DataError: there is no such folder or data set, it has no such split, or a file is unreadable.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _downloaded(source, split)
    files = sorted(path for path in folder.glob(f"**/*{split}*") if path.suffix in (".jsonl", ".parquet"))
    if not files:
        raise DataError(f"{source}: there is no *{split}*.jsonl and no *{split}*.parquet")
    return [record for file in files for record in _read(file)]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            from pyarrow import parquet

            yield from parquet.read_table(path).to_pylist()
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow; install it with: pip install 'backslash-rdo[parquet]'") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not readable as {path.suffix[1:]}: {error}") from error


def _downloaded(name: str, split: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"*{split}*.jsonl", f"*{split}*.parquet"]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own, requests' and httpx' errors, by version
        raise DataError(
            f"{name} is no local folder, and cannot be fetched from the hub ({type(error).__name__}: {error})"
        ) from error
