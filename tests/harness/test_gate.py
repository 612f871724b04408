"""CI's comparison of two commits: what it must catch, what it must let pass, and what it says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asv_tools.commits import comparison
from asv_tools.compare import Change, compare
from asv_tools.figures import Figure, benchmarks, every, gated
from asv_tools.gate import report
from asv_tools.overrides import OVERRIDES, accepted
from rdo.errors import ConfigError
from tests.harness.gated_repository import FATTENED, SLOWED, Repository

TIME = Figure("kernels.track_ratio", 0, ("moments",), "ours / torch", "ratio")
SIZE = Figure("files.track_bytes", 1, ("rans",), "bytes", "bytes")
BITS = Figure("compression.track_bits", None, (), "bits", "bits")


def noisy(value: float, seed: int, spread: float = 0.08) -> Callable[[Figure], float]:
    """A measurement that scatters and now and then is twice too long."""
    drawn = random.Random(seed)
    return lambda _: value * drawn.lognormvariate(0, spread) * (2 if drawn.random() < 0.1 else 1)


def one(figure: Figure, before: float, after: float, **options: object) -> Change:
    (change,) = compare([figure], lambda _: before, lambda _: after, **options)  # type: ignore[arg-type]
    return change


def test_the_same_code_passes_whatever_the_noise() -> None:
    figures = [Figure("f", number, (str(number),), "", "ratio") for number in range(40)]
    for seed in range(10):
        changes = compare(figures, noisy(1.0, 2 * seed), noisy(1.0, 2 * seed + 1))
        assert not [change for change in changes if change.fails]


def test_a_slower_kernel_is_caught_in_that_noise() -> None:
    """Not always: a disturbed first measurement of the version before hides it."""
    found = [compare([TIME], noisy(1.0, 2 * seed), noisy(1.4, 2 * seed + 1)) for seed in range(100)]
    caught = [change for (change,) in found if change.fails]
    assert len(caught) >= 80
    assert all(change.rounds >= 7 for change in caught)


def test_only_what_looks_worse_is_measured_again() -> None:
    asked: list[str] = []

    def after(figure: Figure) -> float:
        asked.append(figure.label)
        return 2.0 if figure is TIME else 1.0

    compare([TIME, SIZE], lambda _: 1.0, after, lead=4)
    assert asked.count(TIME.label) == 4
    assert asked.count(SIZE.label) == 1


@pytest.mark.parametrize(
    ("figure", "before", "passes", "fails"),
    [(TIME, 0.5, 0.549, 0.551), (SIZE, 10_000, 10_010, 10_011), (BITS, 2.0, 2.06, 2.061)],
)
def test_limits(figure: Figure, before: float, passes: float, fails: float) -> None:
    assert not one(figure, before, passes).fails
    assert one(figure, before, fails).fails


def test_a_figure_that_is_lost_fails_and_a_new_one_does_not() -> None:
    assert one(TIME, 1.0, math.nan).fails
    assert not one(TIME, math.nan, 1.0).fails
    assert not one(TIME, math.nan, math.nan).fails


def test_an_override_accepts_up_to_its_value() -> None:
    assert not one(SIZE, 10_000, 10_100, accepted={SIZE.label: 10_100}).fails
    assert one(SIZE, 10_000, 10_101, accepted={SIZE.label: 10_100}).fails
    assert one(SIZE, 10_000, math.nan, accepted={SIZE.label: 10_100}).fails


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('figure = "f"\nup_to = 1', "needs exactly figure, up_to and reason"),
        ('figure = "f"\nup_to = 1\nreason = "ok"', "must say why"),
        ('figure = "g"\nup_to = 1\nreason = "three words long"', "there is no figure 'g'"),
        ('figure = "f"\nup_to = "1"\nreason = "three words long"', "must be a number"),
    ],
)
def test_overrides_need_a_reason_and_a_figure(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "overrides.toml"
    path.write_text(f"[[accept]]\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        accepted({"f"}, path)
    path.write_text('[[accept]]\nfigure = "f"\nup_to = 1\nreason = "three words long"\n')
    assert accepted({"f"}, path) == {"f": 1.0}


def test_the_committed_overrides_and_figures_fit() -> None:
    labels = [figure.label for figure in gated()]
    assert len(set(labels)) == len(labels) > 40
    accepted(labels, OVERRIDES)
    assert {figure.gate for figure in gated()} == {"ratio", "bytes", "bits"}
    assert all(figure.unit != "unit" for figure in every())


def test_every_benchmark_has_a_version_and_those_of_a_gpu_are_skipped_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = benchmarks()
    assert all(benchmark.version.isdecimal() for benchmark in found)  # asv's own would be a hash of the code
    on_gpu = [benchmark for benchmark in found if benchmark.name.startswith("gpu.")]
    assert len(on_gpu) == 6
    for benchmark in on_gpu:
        benchmark.set_param_idx(0)
        assert benchmark.do_setup(), f"{benchmark.name} is not skipped"


def test_the_table_names_figures_and_commits() -> None:
    changes = [one(TIME, 0.5, 0.7), one(SIZE, 100, 90), one(BITS, 2, 2)]
    text = report(changes, ["abc1234 Slow it"])
    assert "FAIL    kernels.track_ratio (moments)  0.5     0.7" in text
    assert "+40.00 %" in text
    assert "better  files.track_bytes (rans)" in text
    assert "done by:\n  abc1234 Slow it" in text
    assert "1 figures within their limits" in text
    assert "done by" not in report(changes[1:], ["abc1234 Slow it"])


def test_a_slowed_kernel_and_a_fattened_table_are_caught(tmp_path: Path) -> None:
    repository = Repository.begun(tmp_path)
    same = repository.gate("--base", "HEAD")
    assert same.returncode == 0, same.stdout + same.stderr
    repository.append("kernels/rdo_kernels/operations.py", SLOWED)
    repository.append("rdo/coders/rans.py", FATTENED)
    repository.commit("Slow the moments and fatten the table")
    (tmp_path / "notes.txt").write_text("of no effect\n")
    repository.commit("Take notes")
    done = repository.gate("--lead", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 2
    assert "files.Files.track_bytes (rans)" in failed[0]
    assert "kernels.BySize.track_ratio (moments, 1000000)" in failed[1]
    assert "done by:\n" in done.stdout
    assert "Slow the moments and fatten the table" in done.stdout
    assert "Take notes" not in done.stdout


def test_by_default_edits_are_compared_with_head(tmp_path: Path) -> None:
    repository = Repository.begun(tmp_path)
    assert comparison(tmp_path).base is None
    repository.append("rdo/errors.py", "\n")
    edited = comparison(tmp_path)
    assert edited.base is not None
    assert edited.suspects == ("the edits in this working tree",)
    with pytest.raises(ValueError, match="no commit 'nowhere'"):
        comparison(tmp_path, "nowhere")
