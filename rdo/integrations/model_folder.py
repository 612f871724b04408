"""Where the weights of a model are: a file, or a directory as Hugging Face lays it out, compressed or plain."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdo.checkpoint import CheckpointInfo, save_compressed
from rdo.checkpoint.container import open_safetensors
from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError
from rdo.integrations.folder import WEIGHTS, mark_config, unmark_config

COMPRESSED, PLAIN = WEIGHTS, "model.safetensors"
INDEX, COMPRESSED_INDEX = f"{PLAIN}.index.json", f"{WEIGHTS}.index.json"
"""Names inside a model directory; an index says which of several files holds which tensor."""

PLAIN_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
"""Of files with plain weights that loaders would take instead of compressed ones."""
_WEIGHTS = (*(f"*{suffix}" for suffix in PLAIN_SUFFIXES), "*.onnx", "*.rdo", INDEX)


def weight_files(path: Path) -> list[Path]:
    """The plain safetensors files that hold the weights of a file or model directory, sorted.

    Raises:
        ConfigError: there are none.
        CorruptCheckpointError: the index of the shards is unreadable or names a file outside the directory.
    """
    if not path.is_dir():
        return [path]
    if (path / PLAIN).exists():
        return [path / PLAIN]
    if not (path / INDEX).exists():
        raise ConfigError(
            f"{path}: a model directory needs {PLAIN} or {INDEX}; a model saved as a pickle (pytorch_model.bin) is "
            "converted where it is trusted: model.save_pretrained(directory, safe_serialization=True)"
        )
    try:
        shards = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        names = sorted(str(shard) for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{path / INDEX}: not an index of shards ({error!r}); fetch it again") from error
    for name in names:
        if Path(name).name != name:
            raise CorruptCheckpointError(f"{path / INDEX}: the shard {name!r} is not in the same directory")
        if not (path / name).exists():
            raise CheckpointError(f"{path / INDEX}: the shard {name!r} is missing; fetch it again")
    return [path / name for name in names]


def configuration(source: Path) -> tuple[Any, str]:
    """The configuration of a model folder, as transformers reads it, and the name of the class that it is for.

    Raises:
        ConfigError: it names none, or several.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        [kind] = config.architectures
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{source}: expected a folder of transformers whose config.json names its class under `architectures` "
            f"({error})"
        ) from error
    return config, str(kind)


def model_without_memory(source: Path) -> nn.Module:
    """The model of a folder of transformers, of its configuration alone: parameters have sizes and no values.

    Raises:
        ConfigError: the configuration names no class, or transformers cannot make it.
    """
    import transformers

    config, kind = configuration(source)
    try:
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, kind)._from_config(config)
    except (ValueError, AttributeError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"{source}: transformers {transformers.__version__} cannot make a {kind} ({error})"
        ) from error
    return model


def tied_names(path: Path, stored: Collection[str]) -> dict[str, str]:
    """The parameters that are not stored because they share the memory of one that is, as an output layer does that is
    the embedding.

    Files of ``safetensors.torch.save_model`` name them in their metadata; of other files the class
    says it that the config.json beside them names.

    Args:
        path: a plain file or model directory.
        stored: names of the tensors in it.

    Returns:
        For each of their names that of the stored tensor.

    Raises:
        ConfigError: as :func:`weight_files` and :func:`model_without_memory`.
    """
    tied: dict[str, str] = {}
    for file in weight_files(path):
        with open_safetensors(file) as container:
            tied |= {name: owner for name, owner in container.metadata.items() if owner in stored}
    folder = path if path.is_dir() else path.parent
    if tied or not (folder / "config.json").exists():
        return tied
    model = model_without_memory(folder)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."  # files of the inner model lack it
    alike: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        short = name.removeprefix(prefix)
        alike.setdefault(owner, []).append(short if name not in stored and short in stored else name)
    for names in alike.values():
        present = [name for name in names if name in stored]
        tied |= {name: present[0] for name in names if present and name not in stored}
    return tied


@contextmanager
def plain_tensors(path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file or model directory, mapped into memory: pages are read when they are used.

    Raises:
        ConfigError, CheckpointError: as :func:`weight_files`, or two shards hold the same name.
    """
    with ExitStack() as stack:
        tensors: dict[str, Tensor] = {}
        for file in weight_files(path):
            container = stack.enter_context(open_safetensors(file))
            for name in container.codes:
                if name in tensors:
                    raise CorruptCheckpointError(f"{file}: tensor {name!r} is in another shard, too")
                tensors[name] = container.tensor(name)
        yield tensors


def compressed_file(path: Path) -> Path:
    """The compressed checkpoint itself: ``path``, or ``model.rdo`` in it."""
    return path / COMPRESSED if path.is_dir() else path


def compressed_file_in(folder: Path) -> Path:
    """The compressed checkpoint in a model folder.

    Raises:
        ConfigError: it is no folder, or has none.
    """
    if not (folder / COMPRESSED).is_file():
        raise ConfigError(f"{folder}: expected a compressed model folder, with {COMPRESSED} (see `rdo compress`)")
    return folder / COMPRESSED


def write_model(
    source: Path,
    out: Path,
    name: str,
    write: Callable[[Path], object],
    configure: Callable[[str], str] = lambda text: text,
) -> Path:
    """Let ``write`` create a file: ``out`` itself, or for a directory ``out/name`` beside copies of everything in
    ``source`` that holds no weights. A directory appears when it is complete.

    A copied config.json says whether the weights are compressed, for transformers; ``configure`` then may change it.

    Returns:
        The path of the file.

    Raises:
        ConfigError: ``out`` holds plain weights that loaders would take instead of compressed ones.
    """
    if not source.is_dir():
        write(out)
        return out
    stale = [other for other in (PLAIN, INDEX) if name == COMPRESSED and (out / other).exists()]
    if stale:
        raise ConfigError(f"{out / stale[0]} would be loaded instead of {name}; remove it, or choose another output")
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}.", suffix=".tmp") as temporary:
        staged = Path(temporary) / "model"
        shutil.copytree(source, staged, ignore=shutil.ignore_patterns(*_WEIGHTS, ".*"))
        write(staged / name)
        config = staged / "config.json"
        if config.exists():
            mark = mark_config if name == COMPRESSED else unmark_config
            _rewrite(config, lambda text: configure(mark(text)))
        if out.exists():
            _replace_files(staged, out)
        else:
            os.replace(staged, out)
    return out / name


def compress_folder(source: Path, out: Path, **options: Any) -> CheckpointInfo:
    """Turn a plain model directory into a compressed one; ``options`` are those of :func:`rdo.save_compressed`.

    Raises:
        ConfigError, CheckpointError, OSError: as :func:`plain_tensors`, :func:`write_model` and
            :func:`rdo.save_compressed`.
    """
    written: list[CheckpointInfo] = []
    with plain_tensors(source) as tensors:
        write_model(source, out, COMPRESSED, lambda path: written.append(save_compressed(tensors, path, **options)))
    return written[0]


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    # Undecodable bytes and the ends of lines survive.
    text = path.read_bytes().decode(errors="surrogateescape")
    path.write_bytes(change(text).encode(errors="surrogateescape"))


def _replace_files(staged: Path, out: Path) -> None:
    for directory, _, names in os.walk(staged):
        target = out / Path(directory).relative_to(staged)
        target.mkdir(exist_ok=True)
        for name in names:
            os.replace(Path(directory) / name, target / name)
