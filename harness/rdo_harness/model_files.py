"""What the commands on files may read and write."""

from __future__ import annotations

from pathlib import Path

from rdo.errors import ConfigError
from rdo.integrations.model_folder import (
    COMPRESSED,
    INDEX,
    PLAIN,
    compressed_file,
    plain_tensors,
    weight_files,
    write_model,
)

__all__ = [
    "COMPRESSED",
    "INDEX",
    "PLAIN",
    "check_output",
    "compressed_file",
    "plain_tensors",
    "weight_files",
    "write_model",
]


def check_output(source: Path, out: Path, force: bool) -> None:
    """Refuse an output that would overwrite, contain or lie in the input.

    Raises:
        ConfigError: it would; FileNotFoundError: ``source`` does not exist.
    """
    source_path, out_path = source.resolve(strict=True), out.resolve()
    if source_path == out_path or (source_path.is_dir() and source_path in out_path.parents):
        raise ConfigError(f"{out} is the input or lies in it; choose another output")
    if out_path in source_path.parents:
        raise ConfigError(f"{out} holds the input; choose another output")
    if out.exists() and source.is_dir() != out.is_dir():
        raise ConfigError(f"{source} and {out} must both be files or both be directories")
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists; choose another output, or replace it with --force")
    if not out_path.parent.is_dir():
        raise ConfigError(f"{out}: the directory {out_path.parent} does not exist; create it first")
