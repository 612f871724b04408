"""Runs a suite: every operating point of every method, each a row; what is finished is never run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rdo.checkpoint import inspect_compressed, load_quantized
from rdo_harness import training
from rdo_harness.architectures.base import Architecture
from rdo_harness.measure import coded_sizes
from rdo_harness.methods.base import Context, Method, OperatingPoint
from rdo_harness.resources import provenance
from rdo_harness.results import Row, append_row, read_rows
from rdo_harness.suite import Suite
from rdo_harness.tasks.base import PreparedTask, Task


@dataclass(frozen=True)
class Cell:
    """One operating point of a suite with one architecture and seed; its key is a hash of all that determines it."""

    suite: Suite
    architecture: Architecture
    method: Method
    point: OperatingPoint
    seed: int

    @property
    def training_key(self) -> str:
        """Cells with equal training keys share one trained model."""
        suite = self.suite
        return training.digest(
            training.configuration(suite.task, self.architecture, suite.budget, self.point.rate, self.seed)
        )

    @property
    def key(self) -> str:
        """Identifies the row of this cell."""
        compression = {"training": self.training_key, "method": self.method.config(), **self.point.config()}
        return training.digest(compression)


class Listener(Protocol):
    """Hears what a run is doing."""

    def plan(self, trainings: int, points: int, finished: int) -> None:
        """Called once, with the trainings and operating points to do and the points found finished."""

    def training(self, cell: Cell, number: int) -> training.Progress:
        """A training begins; the returned function hears of its steps."""
        ...

    def trained(self, seconds: float) -> None:
        """The training ended."""

    def point(self, cell: Cell) -> None:
        """An operating point begins."""

    def finished(self, row: Row, seconds: float) -> None:
        """An operating point has its row, or its error."""


def cells(suite: Suite) -> Iterator[Cell]:
    """Every cell; cells that share a trained model follow one another."""
    for seed in suite.seeds:
        for architecture in suite.architectures:
            group = [
                Cell(suite, architecture, method, point, seed) for method in suite.methods for point in method.points()
            ]
            order = {key: index for index, key in enumerate(dict.fromkeys(cell.training_key for cell in group))}
            yield from sorted(group, key=lambda cell: order[cell.training_key])


def rows_path(out: Path, suite: Suite) -> Path:
    """Where a suite's rows are."""
    return out / "runs" / f"{suite.name}.jsonl"


def current_rows(suite: Suite, out: Path) -> list[Row]:
    """Finished rows that belong to the suite as it is now, in its order; the newest where one was run twice."""
    found = {row.get("key"): row for row in read_rows(rows_path(out, suite))}
    return [found[cell.key] for cell in cells(suite) if cell.key in found]


def run(suite: Suite, out: Path, listener: Listener) -> list[Row]:
    """Run what is not finished yet and return all rows of the suite.

    A point that fails is recorded as a row with an ``error`` and tried again by the next run.
    """
    done = {row["key"] for row in current_rows(suite, out) if "error" not in row}
    todo = [cell for cell in cells(suite) if cell.key not in done]
    work = out / "work" / suite.name
    keys = list(dict.fromkeys(cell.training_key for cell in todo))
    missing = [key for key in keys if not (work / f"{key}.safetensors").exists()]
    listener.plan(len(missing), len(todo), len(done))
    for cell in todo:
        if cell.training_key in missing:
            started = time.perf_counter()
            progress = listener.training(cell, keys.index(cell.training_key) + 1)
            _trained(cell, work, progress)
            missing.remove(cell.training_key)
            listener.trained(time.perf_counter() - started)
        listener.point(cell)
        started = time.perf_counter()
        try:
            row = evaluate(cell, _trained(cell, work, lambda *_: None), work)
        except Exception as error:  # one point must not take the others with it; the row keeps the reason
            row = {**_identity(cell), **provenance(), "error": f"{type(error).__name__}: {error}"}
        append_row(rows_path(out, suite), row)
        listener.finished(row, time.perf_counter() - started)
    return current_rows(suite, out)


def evaluate(cell: Cell, source: training.Trained, work: Path) -> Row:
    """Compress a trained model to disk, read it back, decode it, evaluate that, and count every byte."""
    model = training.load_trained(cell.architecture.build(cell.seed, cell.suite.task), source)
    prepared = _prepared(cell.suite.task, cell.architecture)
    folder = work / f"point-{cell.key}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        path, scratch = folder / "model.rdo", folder / "scratch"
        scratch.mkdir()
        context = Context(cell.architecture, prepared, cell.suite.budget.batch_size, cell.seed, scratch)
        started = time.perf_counter()
        facts = cell.method.apply(model, cell.point, context, path)
        compressed = time.perf_counter()
        quantized, raw = load_quantized(path)
        _fill(model, {**raw, **{name: tensor.dequantize() for name, tensor in quantized.items()}})
        decoded = time.perf_counter()
        info = inspect_compressed(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    evaluation = prepared.evaluate(model, "test")
    evaluated = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    distinct = {id(tensor): tensor.symbols.numpy() for tensor in quantized.values()}  # tied weights count once
    return {
        **_identity(cell),
        "training_seconds": source.seconds,
        "compress_seconds": compressed - started,
        "decompress_seconds": decoded - compressed,
        "evaluate_seconds": evaluated - decoded,
        "peak_memory_bytes": source.peak_memory_bytes,
        "metric_name": cell.suite.task.metric_name,
        "metric": evaluation.metric,
        "cross_entropy": evaluation.cross_entropy,
        "test_items": evaluation.items,
        "uncompressed_metric": source.metric,
        "uncompressed_cross_entropy": source.cross_entropy,
        "shape": source.shape,
        "parameters": parameters,
        "coded_parameters": info.coded_parameters,
        "file_bytes": info.file_bytes,
        "raw_bytes": info.raw_bytes,
        "table_bytes": info.table_bytes + info.index_bytes,
        "payload_bytes": info.payload_bytes,
        "scale_bytes": info.scale_bytes,
        "header_bytes": info.header_bytes,
        "file_bits_per_parameter": 8 * info.file_bytes / parameters,
        "uncompressed_bytes": 2 * parameters,
        **coded_sizes(list(distinct.values()), info),
        **facts,
        **provenance(),
    }


def _identity(cell: Cell) -> Row:
    suite, point = cell.suite, cell.point
    quantizer = point.config()["quantizer"] or {}
    rate: dict[str, Any] = {} if point.rate is None else asdict(point.rate)
    return {
        "key": cell.key,
        "suite": suite.name,
        "suite_version": suite.version,
        "method": cell.method.name,
        "label": cell.method.label,
        "task": suite.task.name,
        "task_version": suite.task.version,
        "architecture": cell.architecture.name,
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
        **point.options,
        "train_steps": suite.budget.steps,
        "train_examples": suite.budget.steps * suite.budget.batch_size,
    }


def _trained(cell: Cell, work: Path, progress: training.Progress) -> training.Trained:
    suite = cell.suite
    prepared = _prepared(suite.task, cell.architecture)
    return training.trained(prepared, cell.architecture, suite.budget, cell.point.rate, cell.seed, work, progress)


@cache
def _prepared(task: Task, architecture: Architecture) -> PreparedTask:
    return task.prepare(architecture)


@torch.no_grad()
def _fill(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load decoded weights over poisoned ones, so that a weight that was not in the file cannot pass unnoticed."""
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    model.load_state_dict(state, strict=True)
