"""Trainings to a size as methods of a suite."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from rdo.errors import ConfigError
from rdo_harness import run as runner
from rdo_harness.methods.size import BackSlashToSize
from rdo_harness.rate_settings import RateSettings
from rdo_harness.suite import parse_suite
from rdo_harness.training import load_trained, trained
from tests.harness.conftest import SUITE, PreparedTiny
from tests.harness.test_run import Recorder

METHODS = """
[[methods]]
name = "backslash-size"
start = 0.5
bits = [19.0]
sparsities = [0.0, 0.6, 0.9]
"""


def test_a_model_trained_to_a_size_is_pruned_after_the_training(tiny: None, tmp_path: Path) -> None:
    suite = parse_suite(tomllib.loads(SUITE[: SUITE.index("[[methods]]")] + METHODS), "tiny.toml")
    recorder = Recorder()
    rows = runner.run(suite, tmp_path, recorder)
    assert [row.get("error") for row in rows] == [None] * 3
    whole, pruned, more = rows
    assert len(recorder.trainings) == 1, "one training for all shares"
    assert whole["file_bits_per_parameter"] == pytest.approx(19.0, rel=0.02)
    assert whole["sparsity"] < 0.55
    assert pruned["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert more["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert whole["file_bytes"] > pruned["file_bytes"] > more["file_bytes"]
    assert whole["cross_entropy"] < more["cross_entropy"]
    assert [row["sparsity_target"] for row in (whole, pruned, more)] == [None, 0.6, 0.9]


def test_shares_to_prune_are_checked() -> None:
    for sparsities in ((), (1.0,), (-0.1,)):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            BackSlashToSize(bits=(1.0,), sparsities=sparsities)
    with pytest.raises(ConfigError, match="scope must be 'tensor' or 'model', got 'layer'"):
        BackSlashToSize(bits=(1.0,), scope="layer")


def test_a_teacher_with_all_of_the_loss_overrules_wrong_labels(tiny: None, tmp_path: Path) -> None:
    """It is the normally trained model of the same seed."""
    suite = parse_suite(tomllib.loads(SUITE), "tiny.toml")
    (part,) = suite.parts
    architecture = part.architectures[0]
    prepared = part.task.prepare(architecture)
    assert isinstance(prepared, PreparedTiny)
    right = prepared.labels.clone()
    misled = RateSettings(lam=0.0, entropy_model={"name": "pareto"}, bits=19.0, start=0.2)

    def accuracy(settings: RateSettings | None) -> float:
        source = trained(prepared, architecture, part.budget, settings, 0, tmp_path, lambda *_: None)
        model = load_trained(architecture.build(0, part.task), source)
        labels, prepared.labels = prepared.labels, right
        metric = prepared.evaluate(model, "test").metric
        prepared.labels = labels
        return metric

    assert accuracy(None) > 0.7
    prepared.labels = (right + 1) % 3
    assert accuracy(misled) < 0.3
    assert accuracy(replace(misled, distilled=1.0)) > 0.6


def test_the_share_of_a_teacher_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"a share of the loss, from 0 to 1; got 1\.5"):
        BackSlashToSize(bits=(1.0,), distilled=1.5)
