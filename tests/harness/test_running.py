"""Kills, parallel processes, clusters, and what suites share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rdo.errors import ConfigError, CorruptCheckpointError
from rdo_harness import run as runner
from rdo_harness import training
from rdo_harness.config import later, settings
from rdo_harness.results import read_rows
from rdo_harness.suite import Suite
from rdo_harness.training_state import load_state, resume, save_state, snapshot
from rdo_harness.workers import ProcessWorkers, cluster_workers
from tests.harness.killed_training import train
from tests.harness.test_run import Recorder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes import what this one can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Rows agree in all that is not time, memory or threads."""
    volatile = ("seconds", "date", "memory", "threads")
    for one, other in zip(rows, others, strict=True):
        kept = {key for key in one if not any(word in key for word in volatile)}
        assert {key: one[key] for key in kept} == {key: other[key] for key in kept}


def test_options_that_came_later_are_hashed_only_where_they_are_used() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Options:
        old: int = 1
        new: int = later(0)

    assert settings(Options()) == {"old": 1}
    assert settings(Options(new=2)) == {"old": 1, "new": 2}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_training_ends_at_the_same_bits(tmp_path: Path, importable: None) -> None:
    whole = train(tmp_path / "whole", checkpoint_seconds=1e9)
    command = [sys.executable, "-m", "tests.harness.killed_training", str(tmp_path / "cut"), "12"]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    [checkpoint] = (tmp_path / "cut").glob("*.checkpoint")
    assert load_state(checkpoint)["step"] == 12
    half, other = (checkpoint.with_name(f".{name}.0123456789ab.tmp") for name in (checkpoint.name, "other.checkpoint"))
    half.write_bytes(b"half")  # as if it had been killed while it wrote the next one
    other.write_bytes(b"another's")
    resumed = train(tmp_path / "cut", checkpoint_seconds=1e9)
    assert not list((tmp_path / "cut").glob("*.checkpoint"))
    assert not half.exists()
    assert other.exists(), "that of a training that may still run"
    ends = [load_file(found.path) for found in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert resumed.history == whole.history
    assert (resumed.metric, resumed.cross_entropy) == (whole.metric, whole.cross_entropy)


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    state = {
        "numbers": [0.1, 2**60, True, None, "text", float("inf")],
        3: {"tuple": (1.5, [torch.arange(3)])},
        "half": torch.tensor([[1.0], [2.0]]).bfloat16().t(),
    }
    save_state(tmp_path / "state", state)
    found = load_state(tmp_path / "state")
    assert found["numbers"] == state["numbers"]
    assert found[3]["tuple"][0] == 1.5
    assert torch.equal(found[3]["tuple"][1][0], torch.arange(3))
    assert torch.equal(found["half"], state["half"])
    assert found["half"].dtype == torch.bfloat16
    content = (tmp_path / "state").read_bytes()
    for damaged in (b"", content[:-1], content.replace(b"tuple", b"tuplf"), b"\x08" + content):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(CorruptCheckpointError, match="delete it"):
            load_state(tmp_path / "state")
    with pytest.raises(TypeError, match="may not hold a set"):
        save_state(tmp_path / "state", {1, 2})


def test_a_state_of_other_code_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path / "state", {**snapshot(model, {"optimizer": optimizer}), "step": 3})
    assert resume(tmp_path / "state", model, {"optimizer": optimizer})["step"] == 3
    with pytest.raises(CorruptCheckpointError, match="another version of the code, it lacks 'rate'; delete it"):
        resume(tmp_path / "state", model, {"optimizer": optimizer, "rate": optimizer})


def test_processes_give_the_rows_of_one(tiny_suite: Suite, tmp_path: Path, importable: None) -> None:
    one = runner.run(tiny_suite, tmp_path / "one", Recorder())
    recorder = Recorder()
    with ProcessWorkers(2) as workers:
        two = runner.run(tiny_suite, tmp_path / "two", recorder, workers)
    same(one, two)
    assert len(recorder.trainings) == 3
    assert len(read_rows(runner.rows_path(tmp_path / "two", tiny_suite))) == 10
    with pytest.raises(ConfigError, match="--jobs must be 1 or more"):
        ProcessWorkers(0)


def test_a_cluster_gives_the_rows_of_one_process(tiny_suite: Suite, tmp_path: Path, importable: None) -> None:
    pytest.importorskip("submitit")
    [part] = tiny_suite.restricted(["pruning"], None).parts
    [method] = part.methods
    part = replace(part, methods=(replace(method, sparsities=(0.5,)),))  # type: ignore[call-arg]
    suite = replace(tiny_suite, parts=(part,))
    one = runner.run(suite, tmp_path / "one", Recorder())
    workers = cluster_workers("local", tmp_path / "jobs", 2, {"timeout_min": 5})
    same(one, runner.run(suite, tmp_path / "two", Recorder(), workers))
    with pytest.raises(ConfigError, match="submitit refuses"):
        cluster_workers("nonsense", tmp_path / "jobs", 2, {})
    with pytest.raises(ConfigError, match="submitit refuses"):
        cluster_workers("local", tmp_path / "jobs", 2, {"no_such_option": 1})


class Dying:
    """Workers whose first calls die, as when the system is out of memory."""

    slots = 2

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        job: Future[Any] = Future()
        self.deaths -= 1
        if self.deaths >= 0:
            job.set_exception(BrokenExecutor("a process was terminated abruptly"))
        else:
            try:
                job.set_result(function(*arguments))
            except Exception as error:
                job.set_exception(error)
        return job


def test_a_worker_that_died_is_replaced_once(tiny_suite: Suite, tmp_path: Path) -> None:
    rows = runner.run(tiny_suite, tmp_path / "once", Recorder(), Dying(1))
    assert not [row for row in rows if "error" in row]
    rows = runner.run(tiny_suite.restricted(["rtn"], None), tmp_path / "always", Recorder(), Dying(99))
    assert [row["error"] for row in rows] == ["BrokenExecutor: a process was terminated abruptly"] * 4


@pytest.mark.parametrize("workers", [None, Dying(0)])
def test_a_failing_training_takes_only_its_own_points(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    trained = training.trained

    def fail(prepared: Any, architecture: Any, budget: Any, rate: Any, *rest: Any) -> Any:
        if rate is not None and rate.lam == 0.01:
            raise FloatingPointError("the training loss became nan")
        return trained(prepared, architecture, budget, rate, *rest)

    monkeypatch.setattr(training, "trained", fail)
    rows = runner.run(tiny_suite, tmp_path, Recorder(), workers)
    assert [row["lam"] for row in rows if "error" in row] == [0.01, 0.01]
    assert len(rows) == 10
    monkeypatch.undo()
    again = Recorder()
    assert not [row for row in runner.run(tiny_suite, tmp_path, again) if "error" in row]
    assert again.planned == (1, 2, 8)


def test_suites_share_trainings_and_points(tiny_suite: Suite, tmp_path: Path) -> None:
    first = runner.run(tiny_suite, tmp_path, Recorder())
    [part] = tiny_suite.parts
    renamed = [replace(method, label=f"{method.label} again") for method in part.methods]
    other = replace(tiny_suite, name="other", parts=(replace(part, methods=tuple(renamed)),))
    recorder = Recorder()
    rows = runner.run(other, tmp_path, recorder)
    assert recorder.planned == (0, 10, 0)
    assert {row["suite"] for row in rows} == {"other"}
    assert all(row["label"].endswith("again") for row in rows)
    assert [row["date"] for row in rows] == [row["date"] for row in first], "measured once"


def test_rows_hold_validation_and_items(tiny_suite: Suite, tmp_path: Path) -> None:
    import base64

    import numpy as np

    for row in runner.run(tiny_suite.restricted(["rtn"], None), tmp_path, Recorder()):
        assert row["validation_items"] == 100
        assert row["validation_cross_entropy"] != row["cross_entropy"]
        assert row["uncompressed_validation_metric"] > 0.7
        nats = np.frombuffer(base64.b64decode(row["item_nats"]), "<f2")
        assert nats.mean(dtype=np.float64) == pytest.approx(row["cross_entropy"], rel=1e-3)
        correct = np.unpackbits(np.frombuffer(base64.b64decode(row["item_correct"]), np.uint8), count=100)
        assert correct.mean() == row["metric"]
