"""The compressed file of a model in training, which processes may share."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import nn

from rdo.checkpoint import CheckpointInfo, save_compressed
from rdo.checkpoint.writer import Coder
from rdo.checkpoint.writers import owners_of
from rdo.errors import ConfigError
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

    def budget_bytes(self, bits_per_parameter: float | None, size_mb: float | None) -> float:
        """The bytes of a file of a size, which is given in one of two units.

        Raises:
            ConfigError: it is given in none or both, or is no positive number.
        """
        if (bits_per_parameter is None) == (size_mb is None):
            raise ConfigError("give either bits_per_parameter or size_mb")
        asked = bits_per_parameter if bits_per_parameter is not None else size_mb
        if asked is None or not 0.0 < asked < math.inf:
            raise ConfigError(f"a size must be a positive number, got {asked}")
        return asked * (1e6 if size_mb is not None else self.parameters / 8)

    def goal_bits(self, quantizer: Quantizer, budget_bytes: float, entropy_bits: float, count: int) -> float:
        """Learn from a file at what entropy it would have a size: coders, headers and other tensors have their cost.

        Args:
            quantizer: what the coded weights are rounded with, to symbols of ``entropy_bits`` a weight.
            count: of these weights.

        Returns:
            Bits per weight.

        Raises:
            ConfigError: the size has no room for the weights.
        """
        info = self.write(quantizer)
        coded = info.payload_bytes + info.table_bytes
        room = budget_bytes - (info.file_bytes - coded)
        if room <= 0:
            raise ConfigError(
                f"a file of {budget_bytes:,.0f} bytes has no room for the weights: "
                f"{info.file_bytes - coded:,} bytes are header, steps and tensors that are not coded; ask for "
                "more, or store those in fewer bits (raw_dtype=torch.bfloat16)"
            )
        return 8 * room / count * min(entropy_bits * count / 8 / max(coded, 1), 2.0)

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
