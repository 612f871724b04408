"""What the commands on files may read and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdo.errors import ConfigError
from rdo.integrations.model_folder import (
    COMPRESSED,
    INDEX,
    PLAIN,
    compressed_file,
    compressed_file_in,
    plain_tensors,
    tied_names,
    weight_files,
    write_model,
)

__all__ = [
    "COMPRESSED",
    "INDEX",
    "PLAIN",
    "FolderSize",
    "check_output",
    "compressed_file",
    "compressed_file_in",
    "folder_size",
    "plain_tensors",
    "tied_names",
    "weight_files",
    "write_model",
]


@dataclass(frozen=True)
class FolderSize:
    """What the weights of a model folder take on the disk.

    Attributes:
        file_bytes: of model.rdo, or of all plain weight files.
        parameters: elements of all stored tensors, tied ones once where the file stores them once.
        compressed: whether it is model.rdo.
    """

    file_bytes: int
    parameters: int
    compressed: bool

    @property
    def bits_per_parameter(self) -> float:
        return 8.0 * self.file_bytes / max(self.parameters, 1)


def folder_size(folder: Path) -> FolderSize:
    """The size of the weights that ``from_pretrained`` takes from a folder: plain ones where there are any.

    Raises:
        ConfigError: it is no folder, or has no weights.
        CheckpointError, OSError: they cannot be read.
    """
    from rdo.checkpoint import inspect_compressed

    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a model folder (config.json, a tokenizer, weights)")
    if not (folder / PLAIN).exists() and not (folder / INDEX).exists() and (folder / COMPRESSED).exists():
        info = inspect_compressed(folder / COMPRESSED)
        return FolderSize(info.file_bytes, info.parameters, True)
    with plain_tensors(folder) as tensors:
        parameters = sum(tensor.numel() for tensor in tensors.values())
    return FolderSize(sum(file.stat().st_size for file in weight_files(folder)), parameters, False)


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
