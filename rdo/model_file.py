"""The compressed file of a model in training, which processes may share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdo.checkpoint import CheckpointInfo, save_compressed
from rdo.checkpoint.trial import written_for_trial
from rdo.checkpoint.writer import Coder
from rdo.quantizers import Quantizer
from rdo.sharding import Shards, is_main_process, whole


class ModelFile:
    """Writes a model with some of its parameters coded.

    Args:
        model: its tensors are plain or sharded.
        names: of the coded parameters.
        shards: of these.
        coder, raw_dtype: as for ``save_compressed``.

    Attributes:
        parameters: elements of all tensors of its state, tied ones once.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        shards: Shards,
        *,
        coder: Coder | Sequence[Coder],
        raw_dtype: torch.dtype | None,
    ) -> None:
        self._model, self._names, self._shards = model, list(names), shards
        self._coder, self._raw_dtype = coder, raw_dtype
        state = model.state_dict()
        if shards.sharded:
            distinct: dict[Any, Tensor] = {owner: state[owner] for owner in owners_of(model).values()}
        else:
            distinct = {tensor.data_ptr(): tensor for tensor in state.values() if tensor.numel()}
        self.parameters = sum(tensor.numel() for tensor in distinct.values())

    def state(self) -> Mapping[str, Tensor]:
        """What is to be written; see :func:`gathered_state` of a sharded model."""
        return gathered_state(self._model) if self._shards.sharded else self._model.state_dict()

    def write(
        self, state: Mapping[str, Tensor], quantizer: Quantizer, path: str | os.PathLike[str] | None = None
    ) -> CheckpointInfo:
        """Write a state to a path, or for its size alone. Only rank 0 can do that of a sharded model.

        Raises:
            As ``save_compressed``.
        """
        coded = {state[name].data_ptr() for name in self._names}
        options: dict[str, Any] = {
            "quantizer": quantizer,
            "coder": self._coder,
            "raw_dtype": self._raw_dtype,
            "compressible": lambda name, tensor: tensor.data_ptr() in coded,
        }
        return written_for_trial(state, **options) if path is None else save_compressed(state, path, **options)

    def agreed(self, write: Callable[[], CheckpointInfo]) -> CheckpointInfo:
        """What :meth:`write` finds, on all processes of a sharded model, of which rank 0 writes."""
        return CheckpointInfo.from_json(self._shards.on_main(lambda: write().to_json()))


def owners_of(model: nn.Module) -> dict[str, str]:
    """The first name of each entry of a model's state dict; tied parameters have several."""
    first: dict[int, str] = {}
    tied = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: tied.get(name, name) for name in model.state_dict()}


@torch.no_grad()
def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded model: on rank 0 whole and on the host, on the others empty.

    Tensors are gathered one at a time, in which all processes must take part. Tied ones are the same tensor.
    """
    gathered: dict[str, Tensor] = {}
    owners, state = owners_of(model), model.state_dict()
    for owner in dict.fromkeys(owners.values()):
        tensor = whole(state[owner])
        if is_main_process():
            gathered[owner] = tensor.cpu()
    return {name: gathered[owner] for name, owner in owners.items()} if gathered else {}
