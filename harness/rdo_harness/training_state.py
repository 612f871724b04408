"""The state of a training on disk: nested state dicts in one safetensors file, what is no tensor as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdo.errors import CorruptCheckpointError
from rdo.files import atomic_write


def save_state(path: Path, state: Any) -> None:
    """Write dictionaries, lists, tuples, tensors, numbers, strings and None, atomically.

    Floats keep every bit, dictionaries the type of their keys. Tensors must be dense; each is written by itself, so
    views of one storage come back as separate tensors.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, tensors)
    content = save(tensors, metadata={"state": json.dumps(tree)})
    with atomic_write(path, len(content)) as file:
        file.write(content)


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote; nothing in the file is executed.

    Raises:
        CorruptCheckpointError: the file is damaged or is another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return _unpack(json.loads(file.metadata()["state"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{path} is not a whole checkpoint of a training ({error!r}); delete it, and the training starts anew"
        ) from error


def snapshot(model: nn.Module, stateful: dict[str, Any]) -> dict[str, Any]:
    """Everything that the next step depends on, for :func:`save_state`; tied parameters once.

    ``stateful`` names what has ``state_dict`` and ``load_state_dict``: the optimizer and its companions.
    """
    return {
        "parameters": dict(model.named_parameters()),
        "buffers": dict(model.named_buffers()),
        "random": torch.get_rng_state(),
        "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **{name: part.state_dict() for name, part in stateful.items()},
    }


def resume(path: Path, model: nn.Module, stateful: dict[str, Any]) -> dict[str, Any]:
    """Put back what :func:`snapshot` took and :func:`save_state` wrote; what else was written with it is returned.

    Raises:
        CorruptCheckpointError: the file is damaged, or the code that wrote it kept other things.
    """
    state: dict[str, Any] = load_state(path)
    try:
        _restore(model, stateful, state)
    except KeyError as error:
        raise CorruptCheckpointError(
            f"{path} was saved by another version of the code, it lacks {error}; delete it, and the training starts "
            "anew"
        ) from error
    return state


@torch.no_grad()
def _restore(model: nn.Module, stateful: dict[str, Any], state: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(state["parameters"][name])
    for name, buffer in model.named_buffers():
        buffer.copy_(state["buffers"][name])
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    if state["random_gpu"]:
        torch.cuda.set_rng_state_all(state["random_gpu"])


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a training's state may not hold a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    raise ValueError(f"unknown kind {kind!r}")
