"""NNCodec (Becking et al., 2023), the reference software of ISO/IEC 15938-17, Neural Network Coding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from rdo.errors import ConfigError
from rdo_harness.methods.base import Context, OperatingPoint
from rdo_harness.methods.peer import PeerMethod
from rdo_harness.peers.exchange import Matrix
from rdo_harness.registries import METHODS


@METHODS.register("nncodec")
@dataclass(frozen=True)
class NNCodec(PeerMethod):
    """NNCodec on all matrices, embeddings too; ``native_bytes`` are its own streams, with contexts and CABAC.

    With dependent (trellis-coded) quantisation weights are multiples of the step as well, but the even or the odd ones
    by turns, which only its own coder makes use of.

    Args:
        qps: quantisation parameters; 4 more double the step, -32 is 2^-8.
        dependent: trellis-coded quantisation, on by default there.
    """

    name: ClassVar[str] = "nncodec"
    peer: ClassVar[str] = "nncodec"
    qps: tuple[int, ...] = (-32, -28, -24, -20, -16)
    dependent: bool = True
    relative_steps: tuple[float, ...] = (0.1, 0.3, 0.55, 0.85)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.qps:
            raise ConfigError("give at least one quantisation parameter in `qps`")

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(rate=None, quantizer=None, options={"qp": qp, "dependent": self.dependent})
            for qp in self.qps
        ]

    def matrices(self, model: nn.Module, context: Context) -> dict[str, Matrix]:
        compressible = context.architecture.compressible
        return {n: Matrix(p, False) for n, p in model.named_parameters() if p.ndim == 2 and compressible(n, p)}

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        matrices = self.matrices(model, context)
        answer, facts = self.ask(model, matrices, point.options, context)
        return {**facts, **self.write(model, matrices, answer, point, context, path)}
