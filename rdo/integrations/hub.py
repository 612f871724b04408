"""Compressed folders on the Hugging Face hub: pushed with a model card that says what is in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError

from rdo.checkpoint import CheckpointInfo, inspect_compressed, verify_compressed
from rdo.errors import CheckpointError, ConfigError, DataError
from rdo.integrations.folder import WEIGHTS, loader_of
from rdo.integrations.model_folder import PLAIN_SUFFIXES, compressed_file_in

CARD = "README.md"
_BEGIN, _END = "<!-- rdo: begin -->", "<!-- rdo: end -->"


def model_card(folder: Path, repository: str, base_model: str | None = None) -> str:
    """The card of a compressed folder: sizes as they are on the disk, and how to load it.

    A card that lies in the folder, as one copied from the original model, keeps its metadata and its text below ours.

    Raises:
        CheckpointError, OSError: the folder's weights cannot be read.
    """
    return _card(inspect_compressed(folder / WEIGHTS), folder, repository, base_model)


def _card(info: CheckpointInfo, folder: Path, repository: str, base_model: str | None) -> str:
    old = folder / CARD
    card = ModelCard(old.read_text(encoding="utf-8") if old.exists() else "---\n{}\n---\n", ignore_metadata_errors=True)
    data: Any = card.data
    data.library_name = "transformers"
    data.tags = sorted({*(data.tags or []), "rdo", "compressed"})
    if base_model is not None:
        data.base_model, data.base_model_relation = base_model, "quantized"
    before, begin, rest = card.text.partition(_BEGIN)
    kept = before + rest.partition(_END)[2].lstrip("\n") if begin else card.text
    ours = _text(info, repository, base_model, _model_class(folder))
    return f"---\n{data.to_yaml()}\n---\n{_BEGIN}\n{ours}{_END}\n\n{kept.strip()}".strip() + "\n"


def _text(info: CheckpointInfo, repository: str, base_model: str | None, model_class: str) -> str:
    coded = [tensor for tensor in info.tensors if tensor.coder is not None]
    coders = Counter(str((tensor.coder or {}).get("name")) for tensor in coded)
    quantizers = Counter(str((tensor.quantizer or {"name": "lossless"}).get("name")) for tensor in coded)
    origin = f" of [{base_model}](https://huggingface.co/{base_model})" if base_model else ""
    rows = {
        f"size of `{WEIGHTS}`": f"{info.file_bytes:,} bytes, everything included",
        "bits per parameter, whole file": f"{info.bits_per_parameter:.3f}",
        "parameters": f"{info.parameters:,}",
        "of these coded": f"{info.coded_parameters:,}, at {info.coded_bits_per_parameter:.3f} bits each",
        "steps chosen": _listed(quantizers),
        "coder": _listed(coders),
        "format": f"version {info.version}, written by {info.writer}",
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return f"""
# {repository.rpartition("/")[2]}

Weights{origin}, quantised and entropy-coded with backslash-rdo (`rdo`). They are in `{WEIGHTS}`, and are decoded when
the model is loaded.

| | |
|---|---|
{table}

```python
import rdo.integrations.transformers  # once, before from_pretrained
from transformers import {model_class}

model = {model_class}.from_pretrained("{repository}", dtype="auto")
```

`rdo verify` checks every byte of a downloaded folder, `rdo decompress` turns it into plain safetensors.

"""


def _model_class(folder: Path) -> str:
    """The class of transformers that loads what config.json says."""
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return "AutoModel"
    return loader_of(kind) or "AutoModel"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count} tensors)" for name, count in counts.most_common()) or "-"


def files_to_push(folder: Path) -> list[str]:
    """Paths below the folder, without hidden ones and the card, which is made anew.

    Raises:
        ConfigError: it is no compressed folder, or holds plain weights, which loaders would take instead.
    """
    compressed_file_in(folder)
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
    for name in names:
        if name.endswith(PLAIN_SUFFIXES):
            raise ConfigError(f"{folder / name}: plain weights beside {WEIGHTS}; remove them, or push another folder")
    return [name for name in names if name != CARD]


def push(
    folder: Path, repository: str, *, base_model: str | None = None, private: bool = False, message: str | None = None
) -> str:
    """Check a compressed folder, and push it with its card in one commit; the repository is made if there is none.

    Access is that of huggingface_hub: ``hf auth login`` or the variable ``HF_TOKEN``.

    Args:
        repository: ``owner/name``.
        base_model: the hub's name of the model it was made from, for the card.
        private: of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the folder is no compressed one, or the name is not one of a repository.
        CheckpointError: the weights are damaged; nothing is pushed.
        DataError: the hub refuses, or cannot be reached.
    """
    names = files_to_push(folder)
    damaged = verify_compressed(folder / WEIGHTS)
    if not damaged.sound:
        what = next(iter(damaged.damaged.values()), "it is not what was written (wrong hash)")
        raise CheckpointError(f"{folder / WEIGHTS}: not pushed: {what}")
    info = inspect_compressed(folder / WEIGHTS)
    card = _card(info, folder, repository, base_model).encode()
    operations = [CommitOperationAdd(name, folder / name) for name in names] + [CommitOperationAdd(CARD, card)]
    message = message or f"Push weights of {info.bits_per_parameter:.2f} bits per parameter"
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is not the name of a repository, such as someone/model ({error})") from error
    except Exception as error:  # the client raises its own, httpx' and the operating system's errors, by version
        raise DataError(
            f"the hub did not take {repository}: {type(error).__name__}: {error}. Check the name, and log in with "
            "`hf auth login` or HF_TOKEN"
        ) from error
