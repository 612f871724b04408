"""Methods that leave the work to a peer: another library, in an environment of its own (rdo_harness.peers)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rdo.errors import ConfigError
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.methods.pruning import check_sparsities
from rdo_harness.peers.catalogue import peer
from rdo_harness.peers.completion import MOST_LOSS, complete, save_expressed
from rdo_harness.peers.conformance import check_levels, check_sparsity
from rdo_harness.peers.exchange import Matrix, ask, linear_matrices
from rdo_harness.peers.expression import Expression, express
from rdo_harness.peers.process import Answer


@dataclass(frozen=True)
class PeerMethod(Method):
    """What methods of peers have in common.

    Args:
        calibration_batches: batches of training data, of the suite's size, that a calibrated peer sees.
    """

    peer: ClassVar[str]
    calibration_batches: int = 8

    def config(self) -> dict[str, Any]:
        config = super().config()
        if peer(self.peer).calibrated:
            config["calibration_batches"] = self.calibration_batches
        if not any(point.quantizer for point in self.points()):  # steps are for what the peer leaves alone
            config["completion"] = [quantizer.config() for quantizer in self.quantizers()]
        return config

    def matrices(self, model: nn.Module, context: Context) -> dict[str, Matrix]:
        """What the peer supports of what methods may compress."""
        return {
            name: matrix
            for name, matrix in linear_matrices(model).items()
            if context.architecture.compressible(name, matrix.parameter)
        }

    def ask(
        self, model: nn.Module, matrices: Mapping[str, Matrix], options: Mapping[str, Any], context: Context
    ) -> tuple[Answer, dict[str, Any]]:
        """The peer's answer, and columns of the row: who did it, how much of the model it changed, its own size."""
        chosen = peer(self.peer)
        batches = context.calibration(self.calibration_batches) if chosen.calibrated else []
        answer = ask(chosen, model, matrices, options, batches, context.seed, context.answers)
        compressible = context.architecture.compressible
        eligible = sum(p.numel() for name, p in model.named_parameters() if compressible(name, p))
        handed = sum(matrix.parameter.numel() for matrix in matrices.values())
        changed = sum(
            matrix.parameter.numel()
            for name, matrix in matrices.items()
            if not torch.equal(answer.tensors[name], matrix.oriented())
        )
        others = sum(p.numel() for p in model.parameters()) - handed
        return answer, {
            "peer": self.peer,
            "peer_versions": " ".join(f"{name}=={version}" for name, version in answer.versions.items()),
            "peer_seconds": answer.seconds,
            "native_coverage": changed / eligible,
            "native_bytes": answer.native_bytes + 2 * others,  # the others in 16 bits
            **answer.facts,
        }

    def write(
        self,
        model: nn.Module,
        matrices: Mapping[str, Matrix],
        answer: Answer,
        point: OperatingPoint,
        context: Context,
        path: Path,
    ) -> dict[str, Any]:
        """Check a quantised answer and write it, what the peer left alone rounded; columns of the row."""
        expressions = {name: expressed(name, matrix, answer) for name, matrix in matrices.items()}
        levels = check_levels(expressions, point.options.get("bits"))
        check_sparsity({name: expression.symbols for name, expression in expressions.items()}, point.sparsity)
        with torch.no_grad():
            for name, matrix in matrices.items():
                matrix.parameter.copy_(expressions[name].weight())
            for name, tensor in answer.beside(matrices).items():
                model.get_parameter(name).copy_(tensor)
        most_loss = point.options.get("rest_loss", MOST_LOSS)
        completion = complete(model, set(matrices), self.quantizers(), context, most_loss)
        save_expressed(model, expressions, completion.steps, path, self.coders)
        return {"levels": levels, **completion.facts()}


@dataclass(frozen=True)
class PeerQuantization(PeerMethod):
    """Quantisation by a peer, its integers coded by our coders.

    What the peer leaves alone by design (embeddings, the output layer) is rounded to nearest, at the coarsest of the
    ``steps`` and ``relative_steps`` that raises the validation cross entropy by at most ``rest_losses``.

    Args:
        bits: widths of the integers.
        group_sizes: neighbours in a row that share a scale; 0 is the whole row.
        rest_losses: shares of the validation cross entropy, each a point of its own.
    """

    bits: tuple[int, ...] = (8, 4, 3, 2)
    group_sizes: tuple[int, ...] = (64,)
    rest_losses: tuple[float, ...] = (MOST_LOSS,)
    relative_steps: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bits or not all(1 <= bits <= 8 for bits in self.bits):
            raise ConfigError(f"give `bits` from 1 to 8, got {list(self.bits)}")
        if not self.group_sizes or min(self.group_sizes) < 0:
            raise ConfigError(f"give `group_sizes` of 1 or more weights, or 0 for rows, got {list(self.group_sizes)}")
        if not self.rest_losses or not all(0.0 < loss < float("inf") for loss in self.rest_losses):
            raise ConfigError(f"give `rest_losses`, positive shares such as 0.01, got {list(self.rest_losses)}")

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(
                rate=None,
                quantizer=None,
                options={"bits": bits, "group_size": size, **({} if loss == MOST_LOSS else {"rest_loss": loss})},
            )
            for size in self.group_sizes
            for bits in self.bits
            for loss in self.rest_losses
        ]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        options = dict(point.options) | ({"sparsity": point.sparsity} if point.sparsity else {})
        options.pop("rest_loss", None)  # is no business of the peer's
        matrices = self.matrices(model, context)
        answer, facts = self.ask(model, matrices, options, context)
        return {**facts, **self.write(model, matrices, answer, point, context, path)}


def expressed(name: str, matrix: Matrix, answer: Answer) -> Expression:
    """One matrix of an answer in symbols, in the orientation of the model's parameter."""
    scale, zero_point = answer.tensors[f"{name}.scale"], answer.tensors.get(f"{name}.zero_point")
    expression = express(name, answer.tensors[name], scale, zero_point)
    return expression.transposed() if matrix.transposed else expression


@dataclass(frozen=True)
class PeerPruning(PeerMethod):
    """Pruning by a peer, then rounding of all weights to nearest.

    Args:
        sparsities: shares of the weights of every linear layer to zero, each in (0, 1); embeddings are not pruned.
    """

    sparsities: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsities(self.sparsities)

    def points(self) -> list[OperatingPoint]:
        return [
            OperatingPoint(rate=None, quantizer=quantizer, sparsity=sparsity)
            for sparsity in self.sparsities
            for quantizer in self.quantizers()
        ]

    def apply(self, model: nn.Module, point: OperatingPoint, context: Context, path: Path) -> dict[str, Any]:
        matrices = self.matrices(model, context)
        options = {"pruner": self.peer, "sparsity": point.sparsity}
        answer, facts = self.ask(model, matrices, options, context)
        check_sparsity({name: answer.tensors[name] for name in matrices}, point.sparsity)
        for name, matrix in matrices.items():
            matrix.fill(answer.tensors[name])
        return {**super().apply(model, point, context, path), **facts}
