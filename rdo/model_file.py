"""The compressed file of a model in training, which processes may share."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from rdo.checkpoint import CheckpointInfo, save_compressed
from rdo.checkpoint.writer import Coder
from rdo.checkpoint.writers import owners_of
from rdo.quantizers import Quantizer


class ModelFile:
    """Writes a model with some of its parameters coded.

    Args:
        model: its tensors are plain, or sharded: then all processes must make this and write together.
        names: of the coded parameters.
        coder, raw_dtype: as for ``save_compressed``.

    Attributes:
        parameters: elements of all tensors of its state, tied ones once.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        coder: Coder | Sequence[Coder],
        raw_dtype: torch.dtype | None,
    ) -> None:
        self._model, self._coder, self._raw_dtype = model, coder, raw_dtype
        state = model.state_dict()
        owners = owners_of(state)
        self.parameters: int = sum(state[owner].numel() for owner in set(owners.values()))
        self._coded = {owners[name] for name in names}

    def write(self, quantizer: Quantizer, path: str | os.PathLike[str] | None = None) -> CheckpointInfo:
        """Write the model as it is to a path, or find out its size alone.

        Raises:
            As ``save_compressed``.
        """
        return save_compressed(
            self._model,
            path,
            quantizer=quantizer,
            coder=self._coder,
            raw_dtype=self._raw_dtype,
            compressible=lambda name, tensor: name in self._coded,
        )
