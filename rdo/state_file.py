"""The state of an attachment as a file: numbers and lists in JSON, tensors beside them, nothing that could run code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rdo.checkpoint.container import Entry, bytes_of, open_safetensors, planned
from rdo.errors import CorruptCheckpointError
from rdo.sharding import is_main_process, is_sharded, whole

_KEY, _TENSOR = "rdo_state", "rdo_tensor"


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write what ``Attachment.state_dict`` returned, atomically: nested dictionaries and lists of numbers and tensors.

    If some tensors are sharded, all processes must call it: they are gathered one at a time, and rank 0 writes.

    Raises:
        CheckpointError, OSError: the disk is full, or the file cannot be written; ``path`` is what it was.
    """
    entries: list[Entry] = []
    sharded = False

    def described(value: Any) -> Any:
        nonlocal sharded
        if isinstance(value, Tensor):
            sharded = sharded or is_sharded(value)
            gathered, name = whole(value.detach()), str(len(entries))
            tensor = gathered.cpu() if is_main_process() or not sharded else gathered.new_empty(0)
            entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), lambda: [bytes_of(tensor)]))
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {str(key): described(item) for key, item in value.items()}
        return [described(item) for item in value] if isinstance(value, list | tuple) else value

    text = json.dumps(described(state))
    if is_main_process() or not sharded:
        planned(entries, {_KEY: text}, sealed=True).write(path)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; tensors are on the CPU, in memory of their own.

    Raises:
        CorruptCheckpointError: the file is damaged, or another kind of file.
        OSError: it cannot be read.
    """
    with open_safetensors(path) as container:
        if _KEY not in container.metadata or not container.is_whole():
            raise CorruptCheckpointError(f"{path}: not a state that rdo saved, or damaged")

        def restored(value: Any) -> Any:
            if isinstance(value, dict):
                if _TENSOR in value:
                    return container.tensor(value[_TENSOR]).clone()
                return {key: restored(item) for key, item in value.items()}
            return [restored(item) for item in value] if isinstance(value, list) else value

        state: dict[str, Any] = restored(json.loads(container.metadata[_KEY]))
        return state
