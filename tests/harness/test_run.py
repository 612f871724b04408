from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rdo
from rdo.coders.base import Histogram
from rdo.coders.exp_golomb import ExpGolomb
from rdo.coders.fixed_length import FixedLength
from rdo.coders.huffman import Huffman
from rdo_harness import resources, training
from rdo_harness import run as runner
from rdo_harness.cells import Cell, cells
from rdo_harness.methods.pruning import prune, prune_smallest
from rdo_harness.methods.rtn import RoundToNearest
from rdo_harness.results import append_row, read_rows
from rdo_harness.suite import Suite, parse_suite
from rdo_harness.training import Trained
from tests.harness.conftest import TinyArchitecture


class Recorder:
    """Counts what a run does, and can interrupt it."""

    def __init__(self, interrupt_after: int | None = None, interrupt_at_training_step: int | None = None) -> None:
        self.trainings: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.planned: tuple[int, int, int] = (0, 0, 0)
        self.interrupt_after, self.interrupt_at_training_step = interrupt_after, interrupt_at_training_step

    def plan(self, trainings: int, points: int, finished: int) -> None:
        self.planned = (trainings, points, finished)

    def training(self, cell: Cell, number: int) -> Any:
        self.trainings.append(cell.training_key)

        def progress(done: int, total: int, note: str) -> None:
            if self.interrupt_at_training_step == done and len(self.trainings) == 2:
                raise KeyboardInterrupt

        return progress

    def trained(self, seconds: float) -> None: ...

    def point(self, cell: Cell) -> None: ...

    def finished(self, row: dict[str, Any], seconds: float) -> None:
        self.rows.append(row)
        if self.interrupt_after == len(self.rows):
            raise KeyboardInterrupt


def test_files_are_coded_with_the_coders_of_the_suite(document: dict[str, Any], tmp_path: Path) -> None:
    document["methods"] = [{"name": "rtn", "steps": ["2^-4"]}, {"name": "rdo-rounding", "bits": [24.0]}]
    rans = runner.run(parse_suite(document, "my.toml"), tmp_path, Recorder())
    document["suite"]["coders"] = ["exp_golomb", "huffman"]
    others = runner.run(parse_suite(document, "my.toml"), tmp_path, Recorder())
    assert [row.get("error") for row in (*rans, *others)] == [None] * 4
    for row in rans:
        assert row["rans_bits_per_parameter"] == row["coded_bits_per_parameter"]
    for row in others:
        assert row["rans_bits_per_parameter"] is None
        assert row["coded_bits_per_parameter"] * row["coded_parameters"] / 8 == pytest.approx(
            row["table_bytes"] + row["payload_bytes"] + row["scale_bytes"]
        )
    assert rans[0]["metric"] == others[0]["metric"]
    assert rans[0]["coded_bits_per_parameter"] != others[0]["coded_bits_per_parameter"]
    for row in (*rans[1:], *others[1:]):  # whatever the coder, to a size
        assert 0.99 * row["bits"] <= row["file_bits_per_parameter"] <= row["bits"]


def test_a_run_makes_one_complete_row_per_point(tiny_suite: Suite, tmp_path: Path) -> None:
    recorder = Recorder()
    rows = runner.run(tiny_suite, tmp_path, recorder)
    assert recorder.planned == (3, 10, 0)
    assert len(recorder.trainings) == 3  # normal, and one for each lambda
    assert [row["label"] for row in rows] == ["normal + RTN"] * 4 + ["pruning"] * 2 + ["backslash"] * 4
    assert len({(row["label"], row["setting"]) for row in rows}) == len(rows)
    for row in rows:
        assert "error" not in row, row
        parts = ("header_bytes", "table_bytes", "payload_bytes", "scale_bytes", "raw_bytes")
        assert sum(row[part] for part in parts) == row["file_bytes"]
        assert row["parameters"] == 16 * 32 + 32 + 32 * 3 + 3
        assert row["coded_parameters"] == 16 * 32 + 32 * 3
        assert row["train_steps"] == 40
        assert row["rans_bits_per_parameter"] >= row["entropy_bits_per_parameter"]
        assert row["exp_golomb_bits_per_parameter"] <= row["exp_golomb_k0_bits_per_parameter"]
        assert row["test_items"] == 100
        assert row["peak_memory_bytes"] > 1e6
        assert row["commit"]
    fine = rows[3]
    assert fine["metric"] > 0.7
    assert abs(fine["cross_entropy"] - fine["uncompressed_cross_entropy"]) < 0.02
    assert [row["rans_bits_per_parameter"] for row in rows[:4]] == sorted(
        row["rans_bits_per_parameter"] for row in rows[:4]
    )
    for row in rows[4:6]:
        assert row["sparsity"] >= row["sparsity_target"] - 1 / row["coded_parameters"]
    assert (
        rows[8]["entropy_bits_per_parameter"] < rows[6]["entropy_bits_per_parameter"]
    )  # a larger lambda codes shorter
    assert list((tmp_path / "work").glob("point-*")) == []


def test_an_interrupted_run_continues_and_ends_as_an_uninterrupted_one(tiny_suite: Suite, tmp_path: Path) -> None:
    whole = runner.run(tiny_suite, tmp_path / "whole", Recorder())
    for interruption in (Recorder(interrupt_after=2), Recorder(interrupt_at_training_step=7)):
        with pytest.raises(KeyboardInterrupt):
            runner.run(tiny_suite, tmp_path / "cut", interruption)
    before = read_rows(runner.rows_path(tmp_path / "cut", tiny_suite))
    assert len(before) == 8
    last = Recorder()
    resumed = runner.run(tiny_suite, tmp_path / "cut", last)
    assert last.planned == (1, 2, 8)
    assert read_rows(runner.rows_path(tmp_path / "cut", tiny_suite))[:8] == before
    volatile = ("seconds", "date", "memory")
    for one, other in zip(whole, resumed, strict=True):
        same = {key for key in one if not any(word in key for word in volatile)}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert Recorder().planned == (0, 0, 0)
    again = Recorder()
    runner.run(tiny_suite, tmp_path / "cut", again)
    assert again.planned == (0, 0, 10)


def test_a_failing_point_is_recorded_and_tried_again(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(RoundToNearest, "apply", fail)
        rows = runner.run(tiny_suite, tmp_path, Recorder())
    failed = [row for row in rows if "error" in row]
    assert [row["label"] for row in failed] == ["normal + RTN"] * 4
    assert failed[0]["error"] == "OSError: no space left"
    assert len([row for row in rows if "error" not in row]) == 6
    again = Recorder()
    rows = runner.run(tiny_suite, tmp_path, again)
    assert again.planned == (0, 4, 6)
    assert not any("error" in row for row in rows)


def test_what_a_method_of_ones_own_forgot_is_told(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tiny_suite.restricted(["rtn"], None)
    write = RoundToNearest.apply

    def write_and_return_nothing(*arguments: Any) -> None:
        write(*arguments)

    monkeypatch.setattr(RoundToNearest, "apply", lambda *_: {})
    assert "method 'rtn' wrote no file: its `apply` must write" in runner.run(suite, tmp_path, Recorder())[0]["error"]
    monkeypatch.setattr(RoundToNearest, "apply", write_and_return_nothing)
    assert "method 'rtn' returned None: its `apply` must" in runner.run(suite, tmp_path, Recorder())[0]["error"]


def test_the_evaluated_weights_are_the_coded_ones(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is evaluated comes from the file: change the file's weights and the row changes with them."""
    import rdo

    def save_zeros(self: Any, model: torch.nn.Module, point: Any, context: Any, path: Path) -> dict[str, Any]:
        state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        rdo.save_compressed(state, path, quantizer=point.quantizer)
        return {}

    monkeypatch.setattr(RoundToNearest, "apply", save_zeros)
    suite = tiny_suite.restricted(["rtn"], None)
    for row in runner.run(suite, tmp_path, Recorder()):
        assert row["cross_entropy"] == pytest.approx(float(np.log(3)), abs=1e-6)
        assert row["sparsity"] == 1.0


def test_a_file_that_lacks_a_weight_is_an_error(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rdo

    def save_some(self: Any, model: torch.nn.Module, point: Any, context: Any, path: Path) -> dict[str, Any]:
        state = dict(model.state_dict())
        del state["second.bias"]
        rdo.save_compressed(state, path, quantizer=point.quantizer)
        return {}

    monkeypatch.setattr(RoundToNearest, "apply", save_some)
    suite = tiny_suite.restricted(["rtn"], None)
    assert all("second.bias" in row["error"] for row in runner.run(suite, tmp_path, Recorder()))


def test_keys_depend_on_everything_that_determines_a_row_and_on_nothing_else(tiny_suite: Suite) -> None:
    keys = [cell.key for cell in cells(tiny_suite)]
    assert len(set(keys)) == len(keys)
    [part] = tiny_suite.parts
    renamed = replace(part, methods=tuple(replace(method, label=method.label + "!") for method in part.methods))
    relabelled = replace(tiny_suite, parts=(renamed,))
    assert [cell.key for cell in cells(relabelled)] == keys
    for change in (
        replace(tiny_suite, parts=(replace(part, budget=replace(part.budget, steps=41)),)),
        replace(tiny_suite, seeds=(1,)),
    ):
        assert not {cell.key for cell in cells(change)} & set(keys)


def test_rows_of_an_older_suite_stay_in_the_file_but_out_of_the_result(tiny_suite: Suite, tmp_path: Path) -> None:
    path = runner.rows_path(tmp_path, tiny_suite)
    append_row(path, {"key": "from-an-older-version"})
    rows = runner.run(tiny_suite, tmp_path, Recorder())
    assert len(rows) == 10
    assert read_rows(path)[0] == {"key": "from-an-older-version"}


def test_sizes_from_histograms_are_what_encoding_gives() -> None:
    symbols = np.random.default_rng(0).laplace(0, 3, 20_000).round().astype(np.int32)
    histogram = Histogram.of(symbols)
    for coder in (FixedLength(), Huffman()):
        assert coder.size_bytes(histogram) == coder.encode(symbols).nbytes
    for k in range(11):
        golomb = ExpGolomb(k=k, mapping="rank")
        assert golomb.size_bytes(histogram) == pytest.approx(golomb.encode(symbols).nbytes, rel=1e-3)


def test_pruning_zeroes_exactly_the_smallest() -> None:
    weights = [torch.nn.Parameter(torch.randn(7, 5)), torch.nn.Parameter(torch.randn(11))]
    before = torch.cat([weight.detach().flatten().clone() for weight in weights])
    prune_smallest(weights, 0.5)
    after = torch.cat([weight.detach().flatten() for weight in weights])
    gone = after == 0
    assert int(gone.sum()) == 23
    assert before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(before[~gone], after[~gone])
    ties = [torch.nn.Parameter(torch.ones(10))]
    prune_smallest(ties, 0.3)
    assert ties[0].tolist() == [0.0] * 3 + [1.0] * 7


@pytest.mark.parametrize(("scope", "zeros"), [("tensor", [5, 5]), ("model", [10, 0])])
def test_a_share_is_pruned_of_each_tensor_or_of_the_model(scope: str, zeros: list[int]) -> None:
    model = torch.nn.ModuleDict({"small": torch.nn.Linear(5, 2), "large": torch.nn.Linear(2, 5)})
    with torch.no_grad():
        model["small"].weight.copy_(torch.linspace(0.1, 0.4, 10).view(2, 5))
        model["large"].weight.copy_(-torch.linspace(0.5, 0.8, 10).view(5, 2))
    prune(model, 0.5, TinyArchitecture(), scope)
    assert [int((model[name].weight == 0).sum()) for name in ("small", "large")] == zeros
    assert model["large"].bias.count_nonzero() == 5, "biases are not compressible"


def test_rows_are_valid_json_without_nan(tiny_suite: Suite, tmp_path: Path) -> None:
    runner.run(tiny_suite.restricted(["rtn"], None), tmp_path, Recorder())
    for line in runner.rows_path(tmp_path, tiny_suite).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in a row"))


def test_rows_name_the_code_that_was_there_when_the_training_began(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another commit may be checked out before a long training ends."""
    head = "began"

    def git(folder: Path, *arguments: str) -> str:
        return {"--show-toplevel": str(Path(rdo.__file__).parents[1]), "HEAD": head}.get(arguments[1], "")

    def train(*arguments: object) -> Trained:
        nonlocal head
        found = original(*arguments)  # type: ignore[arg-type]
        head = "ended"
        return found

    original = training.trained
    monkeypatch.setattr(resources, "_git", git)
    monkeypatch.setattr(training, "trained", train)
    resources.code_version.cache_clear()
    try:
        assert {row["commit"] for row in runner.run(tiny_suite, tmp_path, Recorder())} == {"began"}
    finally:
        resources.code_version.cache_clear()
