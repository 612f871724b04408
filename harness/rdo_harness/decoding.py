"""A method's file read back: the weights to evaluate, and what its bytes are for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rdo.checkpoint import inspect_compressed, load_quantized
from rdo_harness.measure import coded_sizes
from rdo_harness.peers import expression


class Decoded(ABC):
    """What was read from a file.

    Attributes:
        weights: every tensor of the model by its name.
    """

    weights: Mapping[str, Tensor]

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """Columns of a row: ``file_bytes``, what they are for, and bits per parameter under each coder."""


class DecodedCheckpoint(Decoded):
    """A compressed checkpoint."""

    def __init__(self, path: Path) -> None:
        self._quantized, self._raw = load_quantized(path)
        self.weights = expression.decoded(self._quantized, self._raw)
        self._info = inspect_compressed(path)

    def sizes(self) -> dict[str, Any]:
        info, side_bytes = self._info, expression.side_bytes(self._raw)
        distinct = {id(tensor): tensor.symbols.numpy() for tensor in self._quantized.values()}  # tied ones count once
        return {
            "coded_parameters": info.coded_parameters,
            "file_bytes": info.file_bytes,
            "raw_bytes": info.raw_bytes - side_bytes,
            "table_bytes": info.table_bytes + info.index_bytes,
            "payload_bytes": info.payload_bytes,
            "scale_bytes": info.scale_bytes + side_bytes,
            "header_bytes": info.header_bytes,
            **coded_sizes(list(distinct.values()), info, side_bytes),
        }
