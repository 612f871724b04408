"""Cells: the operating points of a suite, each identified by a hash of all that determines it, and their results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdo.errors import ConfigError
from rdo.files import atomic_write
from rdo_harness import training
from rdo_harness.architectures.base import Architecture
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.metrics import pack_items
from rdo_harness.resources import code_version, provenance
from rdo_harness.results import Row
from rdo_harness.suite import Part, Suite
from rdo_harness.tasks.base import PreparedTask, Task

_OF_THE_SUITE = ("suite", "suite_version", "label", "setting", "architecture")
"""Columns that are the cell's, whoever measured it: equal cells of two suites differ in the first three."""


@dataclass(frozen=True)
class Cell:
    """One operating point of a suite with one architecture and seed; its key is a hash of all that determines it."""

    suite: Suite
    part: Part
    architecture: Architecture
    method: Method
    point: OperatingPoint
    seed: int

    @property
    def training_key(self) -> str:
        """Cells with equal training keys share one trained model."""
        part = self.part
        return training.digest(
            training.configuration(part.task, self.architecture, part.budget, self.point.rate, self.seed)
        )

    @property
    def key(self) -> str:
        """Identifies the row of this cell, in whatever suite it occurs."""
        compression = {"training": self.training_key, "method": self.method.config(), **self.point.config()}
        return training.digest(compression)


def cells(suite: Suite) -> Iterator[Cell]:
    """Every cell; cells that share a trained model follow one another."""
    for seed in suite.seeds:
        for part in suite.parts:
            for architecture in part.architectures:
                group = [
                    Cell(suite, part, architecture, method, point, seed)
                    for method in part.methods
                    for point in method.points()
                ]
                order = {key: index for index, key in enumerate(dict.fromkeys(cell.training_key for cell in group))}
                yield from sorted(group, key=lambda cell: order[cell.training_key])


def trained(cell: Cell, work: Path, progress: training.Progress = lambda *_: None) -> training.Trained:
    """The trained model of a cell, from the folder ``work`` or trained now."""
    code_version()  # before it is trained
    prepared = _prepared(cell.part.task, cell.architecture)
    return training.trained(prepared, cell.architecture, cell.part.budget, cell.point.rate, cell.seed, work, progress)


def finish(cell: Cell, work: Path) -> Row:
    """The row of a cell: what ``work`` holds of an earlier run, of this or another suite, or measured now.

    Of several processes one measures and the others wait for it. A failure becomes a row with an ``error``.
    """
    from filelock import FileLock

    path = work / "rows" / f"{cell.key}.json"
    try:
        for folder in (path.parent, work / "locks"):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "locks" / cell.key):
            if not path.exists():
                content = json.dumps(evaluate(cell, trained(cell, work), work), allow_nan=False).encode()
                with atomic_write(path, len(content)) as file:
                    file.write(content)
        return relabelled(json.loads(path.read_bytes()), cell)
    except Exception as error:  # one point must not take the others with it; the row keeps the reason
        return failed(cell, error)


def relabelled(row: Row, cell: Cell) -> Row:
    """The row of an equal cell of another suite as one of this suite."""
    mine = identity(cell)
    return {**row, **{column: mine[column] for column in _OF_THE_SUITE}}


def failed(cell: Cell, error: BaseException) -> Row:
    """The row of a cell that could not be measured."""
    return {**identity(cell), **provenance(), "error": f"{type(error).__name__}: {error}"}


def evaluate(cell: Cell, source: training.Trained, work: Path) -> Row:
    """Compress a trained model to disk, read it back, decode it, evaluate that, and count every byte."""
    model = training.load_trained(cell.architecture.build(cell.seed, cell.part.task), source)
    prepared = _prepared(cell.part.task, cell.architecture)
    folder = work / f"point-{cell.key}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        path = folder / "model.rdo"
        batch_size, answers = cell.part.budget.batch_size, work / "peers"
        context = Context(cell.architecture, prepared, batch_size, cell.seed, answers, source.quantizer())
        started = time.perf_counter()
        facts = cell.method.apply(model, cell.point, context, path)
        compressed = time.perf_counter()
        _check_method(cell.method, facts, path)
        found = cell.method.read(path)
        _fill(model, found.weights)
        decoded = time.perf_counter()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    test = prepared.evaluate(model, "test")
    evaluated = time.perf_counter()
    validation = prepared.evaluate(model, "validation")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = found.sizes()
    return {
        **identity(cell),
        "training_seconds": source.seconds,
        "compress_seconds": compressed - started,
        "decompress_seconds": decoded - compressed,
        "evaluate_seconds": evaluated - decoded,
        "peak_memory_bytes": source.peak_memory_bytes,
        "metric_name": cell.part.task.metric_name,
        "metric": test.metric,
        "cross_entropy": test.cross_entropy,
        "test_items": test.items,
        **test.more,
        **pack_items(test),
        "validation_metric": validation.metric,
        "validation_cross_entropy": validation.cross_entropy,
        "validation_items": validation.items,
        "uncompressed_metric": source.metric,
        "uncompressed_cross_entropy": source.cross_entropy,
        "uncompressed_validation_metric": source.validation_metric,
        "uncompressed_validation_cross_entropy": source.validation_cross_entropy,
        "shape": source.shape,
        "parameters": parameters,
        **sizes,
        "file_bits_per_parameter": 8 * sizes["file_bytes"] / parameters,
        "uncompressed_bytes": 2 * parameters,
        **facts,
        **provenance(),
    }


def identity(cell: Cell) -> Row:
    """The columns of a row that say what was asked for."""
    suite, part, point = cell.suite, cell.part, cell.point
    quantizer = point.config()["quantizer"] or {}
    rate: dict[str, Any] = {} if point.rate is None else asdict(point.rate)
    return {
        "key": cell.key,
        "training_key": cell.training_key,
        "suite": suite.name,
        "suite_version": suite.version,
        "method": cell.method.name,
        "label": cell.method.label,
        "setting": point.describe(),
        "task": part.task.name,
        "task_version": part.task.version,
        "architecture": cell.architecture.title,
        "seed": cell.seed,
        "lam": rate.get("lam"),
        "lam_units": rate.get("units"),
        "apply": rate.get("apply"),
        "eps": rate.get("entropy_model", {}).get("eps"),
        "regulariser_p": rate.get("entropy_model", {}).get("p"),
        "step": quantizer.get("step"),
        "relative_step": quantizer.get("ratio"),
        "granularity": quantizer.get("granularity", "global") if quantizer else None,
        "sparsity_target": point.sparsity or None,
        **(
            {key: rate[key] for key in ("bits", "pressure", "allocation", "start", "compensated")}
            if rate.get("bits")
            else {}
        ),
        **({"loss_increase": rate["increase"]} if rate.get("increase") is not None else {}),
        **point.options,
        "train_steps": part.budget.steps,
        "train_examples": part.budget.steps * part.budget.batch_size,
    }


def _check_method(method: Method, facts: object, path: Path) -> None:
    """Say what a method forgot, where Python would only say what follows from that."""
    if not path.is_file():
        raise ConfigError(
            f"method {method.name!r} wrote no file: its `apply` must write a compressed checkpoint to `path`, for "
            "instance by `return super().apply(model, point, context, path)`"
        )
    if not isinstance(facts, dict):
        raise ConfigError(
            f"method {method.name!r} returned {facts!r}: its `apply` must return a dict of further columns, or an "
            "empty one"
        )


@cache
def _prepared(task: Task, architecture: Architecture) -> PreparedTask:
    return task.prepare(architecture)


@torch.no_grad()
def _fill(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load decoded weights over poisoned ones, so that a weight that was not in the file cannot pass unnoticed."""
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    model.load_state_dict(weights, strict=True)
