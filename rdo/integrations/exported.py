"""What exports of compressed folders to other formats share: how many levels a tensor has, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from rdo.checkpoint import CompressedFile
from rdo.errors import ConfigError
from rdo.quantizers import QuantizedTensor


@dataclass(frozen=True)
class Levels:
    """The symbols of a coded tensor, as a fixed-width format sees them.

    Attributes:
        lowest, highest: the smallest and the largest symbol.
        steps: float32 [rows], one for each row of a matrix, equal if the tensor has one step.
    """

    lowest: int
    highest: int
    steps: torch.Tensor

    @property
    def count(self) -> int:
        """Levels from the lowest to the highest, zero always among them."""
        return max(self.highest, 0) - min(self.lowest, 0) + 1

    def fit(self, bits: int) -> bool:
        """Whether every symbol is a two's complement number of this width."""
        return -(1 << (bits - 1)) <= self.lowest and self.highest < 1 << (bits - 1)


@dataclass
class Exported:
    """What was written.

    Attributes:
        file: with the weights; ``file_bytes`` long.
        quantised: bits of a weight by the name of each tensor that kept its symbols.
        plain: why, by the name of each tensor that was coded and is now stored as decoded numbers.
        largest_change: of any weight against the decoded one, over that weight: what rounding its scale to the
            format's data type costs.
    """

    file: Path
    file_bytes: int = 0
    quantised: dict[str, int] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    largest_change: float = 0.0


def levels_of(compressed: CompressedFile, name: str) -> Levels | str:
    """The levels of a stored tensor; or why a format of scaled integers cannot hold it."""
    record = compressed.records[name]
    if record.kind != "coded":
        return f"it is stored as {record.kind}, not quantised"
    if len(record.size) != 2:
        return f"it has {len(record.size)} axes, not 2"
    if record.group.channels == "columns":
        return "its columns have each a step, and such formats have one for a row or a block of it"
    quantized: QuantizedTensor = compressed.quantized(name)
    rows, steps = record.size[0], quantized.steps.reshape(-1)
    if len(steps) not in (1, rows):
        return f"it has {len(steps)} steps for {rows} rows"
    symbols = quantized.symbols
    lowest, highest = (int(symbols.min()), int(symbols.max())) if symbols.numel() else (0, 0)
    return Levels(lowest, highest, steps.expand(rows))


def refuse(name: str, levels: Levels, bits: int, path: Path) -> None:
    """Say that a tensor has more levels than the format.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"{path}: tensor {name!r} has {levels.count:,} levels ({levels.lowest} to {levels.highest}), and {bits} bits "
        f"hold {1 << bits} ({-(1 << (bits - 1))} to {(1 << (bits - 1)) - 1}). Compress with steps that are about "
        f"{_times(levels, bits):.2g} times as large, or store such tensors as plain numbers (--allow-plain)"
    )


def _times(levels: Levels, bits: int) -> float:
    return max(-levels.lowest / (1 << (bits - 1)), levels.highest / ((1 << (bits - 1)) - 1))
