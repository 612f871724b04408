"""Trainings to a quality as methods of a suite."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rdo.errors import ConfigError
from rdo_harness import run as runner
from rdo_harness.methods.quality import BackSlashToQuality
from rdo_harness.suite import parse_suite
from tests.harness.conftest import SUITE
from tests.harness.test_run import Recorder

METHODS = """
[[methods]]
name = "backslash-quality"
increases = [0.05, 1.0]

[[methods]]
name = "rtn"
relative_steps = [0.1]
"""


def test_validation_loss_is_within_the_limit_that_normal_training_sets(tiny: None, tmp_path: Path) -> None:
    suite = parse_suite(tomllib.loads(SUITE[: SUITE.index("[[methods]]")] + METHODS), "tiny.toml")
    recorder = Recorder()
    rows = {row.get("loss_increase"): row for row in runner.run(suite, tmp_path, recorder)}
    assert [row.get("error") for row in rows.values()] == [None] * 3
    assert len(recorder.trainings) == 3
    normal = rows[None]["uncompressed_validation_cross_entropy"]
    for increase in (0.05, 1.0):
        row = rows[increase]
        assert row["validation_cross_entropy"] <= (1.0 + increase) * normal
        assert row["uncompressed_validation_cross_entropy"] == row["validation_cross_entropy"]  # it was rounded already
    assert rows[1.0]["file_bytes"] < rows[0.05]["file_bytes"]


def test_qualities_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least one quality in `increases`"):
        BackSlashToQuality()
    with pytest.raises(ConfigError, match=r"a share of the loss, such as 0\.02; got -1"):
        BackSlashToQuality(increases=(0.1, -1.0))
