"""Every figure of the paper is drawn from a run's own rows, and shows what these say."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from rdo_harness import figures
from rdo_harness.cells import cells
from rdo_harness.figures import weights
from rdo_harness.figures.bands import over_seeds
from rdo_harness.figures.training import implied_rate
from rdo_harness.progress import ProgressDisplay
from rdo_harness.results import Row, read_rows
from rdo_harness.run import run, work_path
from rdo_harness.significance import wilson
from rdo_harness.suite import parse_suite
from rdo_harness.trainings import collect, trainings_path
from tests.harness.conftest import SUITE
from tests.harness.test_report import ROWS, curve, row

METHODS = """
[[methods]]
name = "rtn"
label = "normal + RTN"
steps = ["2^-4", "2^-8", "2^-12"]

[[methods]]
name = "backslash"
label = "BackSlash, gradient"
lams = [0.01, 0.1, 1.0]
steps = ["2^-4", "2^-8", "2^-12"]

[[methods]]
name = "pruning"
label = "normal, pruned"
sparsities = [0.5, 0.9]
steps = ["2^-8"]

[[methods]]
name = "backslash-pruning"
label = "BackSlash, pruned"
lams = [0.1]
sparsities = [0.5, 0.9]
steps = ["2^-8"]
"""


@pytest.fixture
def measured(tiny: None, tmp_path: Path) -> tuple[pd.DataFrame, list[Row], Path]:
    """Rows of a run as the paper's suites are, its trainings, and its folder."""
    suite = parse_suite(tomllib.loads(SUITE.split("[[methods]]")[0] + METHODS), "tiny.toml")
    rows = run(suite, tmp_path, ProgressDisplay(Console(quiet=True)))
    frame = pd.DataFrame(rows)
    frame["best_coder_bits_per_parameter"] = frame["rans_bits_per_parameter"]
    return frame, collect(cells(suite), tmp_path), tmp_path


def test_every_figure_of_the_paper(measured: Any) -> None:
    frame, trainings, _ = measured
    labels = list(dict.fromkeys(frame["label"]))
    lams = [f"BackSlash, gradient, lambda {lam}" for lam in ("0.01", "0.1", "1")]
    expected = {
        "fig1": {"weights", "generalized Gaussian", "Laplace", "Gaussian"},
        "fig2": {"normal training", *lams},
        "fig3": {"normal training", *lams},
        "fig4": {"EG0", "EG best k"},
        "fig5": {"Huffman", "entropy"},
        "fig6": {"normal training", *lams},
        "fig7": {"normal + RTN", *lams},
        "fig8": {"normal, pruned", "BackSlash, pruned, lambda 0.1"},
    }
    for paper, names in expected.items():
        [drawn] = figures.draw(frame, labels, trainings, paper)
        assert drawn.name == ""
        assert drawn.caption
        [legend] = drawn.figure.legends
        assert names <= {text.get_text() for text in legend.get_texts()}, paper
        for panel in drawn.figure.axes:
            if panel.axison:
                assert "" not in (panel.get_xlabel(), panel.get_ylabel(), panel.get_title()), paper
    assert [drawn.name for drawn in figures.draw(frame, labels, trainings)] == ["", "sparsity", "shape", "weights"]
    assert figures.draw(frame, labels, [], "fig3") == [], "without trainings there is nothing to show"
    assert [drawn.name for drawn in figures.draw(frame, labels, [])] == [""]


def test_figures_show_the_rows(measured: Any) -> None:
    frame, trainings, _ = measured
    labels = list(dict.fromkeys(frame["label"]))
    [drawn] = figures.draw(frame, labels, trainings, "fig8")
    [panel] = drawn.figure.axes
    pruned = frame[frame["label"] == "normal, pruned"].sort_values("sparsity_target")
    line = next(line for line in panel.get_lines() if line.get_label() == "normal, pruned")
    assert list(line.get_xdata()) == [0, 50, 90]
    assert list(line.get_ydata()) == [pruned["uncompressed_metric"].iloc[0], *pruned["metric"]]
    [drawn] = figures.draw(frame, labels, trainings, "fig3")
    line = next(line for line in drawn.figure.axes[0].get_lines() if line.get_label().endswith("lambda 1"))
    [training] = [training for training in trainings if training["lam"] == 1.0]
    assert line.get_ydata()[-1] == pytest.approx(training["shape"])


def test_a_training_is_observed_once(measured: Any, tmp_path: Path) -> None:
    frame, trainings, out = measured
    assert [training["lam"] for training in trainings] == [None, 0.01, 0.1, 1.0]
    assert {training["training_key"] for training in trainings} == set(frame["training_key"])
    suite = parse_suite(tomllib.loads(SUITE.split("[[methods]]")[0] + METHODS), "tiny.toml")
    for model in work_path(out).glob("*.safetensors"):
        model.unlink()
    assert collect(cells(suite), out) == trainings == read_rows(trainings_path(out))
    trainings_path(out).unlink()
    assert collect(cells(suite), out) == [], "the models are gone"
    for training in trainings:
        [point] = frame[
            (frame["training_key"] == training["training_key"])
            & (frame["step"] == 2.0**-8)
            & frame["sparsity_target"].isna()
        ].to_dict("records")
        total, zeros = (sum(layer[key] for layer in training["layers"]) for key in ("weights", "zeros"))
        assert total == point["coded_parameters"]
        assert zeros / total == pytest.approx(point["sparsity"])
        golomb = training["exp_golomb_bits_per_parameter"][0] + 8 * point["scale_bytes"] / total
        assert golomb == pytest.approx(point["exp_golomb_k0_bits_per_parameter"])


def test_fitted_laws_are_densities_with_the_spread_of_the_weights() -> None:
    counts, edges = np.histogram(np.random.default_rng(0).laplace(0, 0.1, 200_000), np.linspace(-2, 2, 402))
    sigma = 0.1 * math.sqrt(2)
    training = {
        "shape": 1.0,
        "histogram": {"rms": sigma, "reach": 2.0, "weights": 200_000, "counts": counts.tolist()},
    }
    _, density = weights._density(training)
    laws = weights._fitted(training, edges)
    width, centres = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    for law in laws.values():
        assert (law * width).sum() == pytest.approx(1.0, abs=1e-5)
        assert (law * width * centres**2).sum() == pytest.approx(sigma**2, rel=0.01)
    error = {name: np.abs(law - density).max() for name, law in laws.items()}
    assert error["Laplace"] == pytest.approx(error["generalized Gaussian"])
    assert error["Laplace"] < 0.1 * error["Gaussian"]


def training_row(architecture: str, label: str, bits: float | None) -> tuple[Row, Row]:
    """A training, and a point of it."""
    key = f"{architecture} {label} {bits}"
    shared = {"architecture": architecture, "task": "bytes", "seed": 0, "training_key": key, "bits": bits}
    history = [{"step": 0, "shape": 1.0}, {"step": 10, "shape": bits or 2.0}]
    lam = None if bits is None else 1.0
    return {**shared, "lam": lam, "apply": label, "history": history}, {**shared, "label": label}


def test_panels_show_the_same_setting_of_a_method_in_the_same_colour() -> None:
    """Each model has too many trainings for one panel; the second lacks a method and the middle size of another."""
    settings = {
        "first": {"normal": [None], "A": [3.0, 2.0, 1.0], "B": [1.0, 2.0, 3.0], "C": [4.0, 5.0, 6.0]},
        "second": {"normal": [None], "C": [7.0, 4.0, 8.0, 9.0], "A": [1.0, 2.0, 3.0, 4.0, 5.0]},
    }
    pairs = [
        training_row(model, label, bits) for model, by in settings.items() for label, b in by.items() for bits in b
    ]
    lines = figures._lines(pd.DataFrame([point for _, point in pairs]), [training for training, _ in pairs])
    panels = figures.training.shape_over_steps(lines).axes
    shown = [{str(line.get_label()): line for line in panel.get_lines()} for panel in panels]
    assert [list(names) for names in shown] == [
        ["normal training", "A, 2 bits", "B, 2 bits", "C, 4 bits"],
        ["normal training", "A, 2 bits", "C, 4 bits"],
    ]
    colours = [{name: line.get_color() for name, line in names.items()} for names in shown]
    assert len(set(colours[0].values())) == 4
    assert colours[1].items() <= colours[0].items()
    assert [panel.get_lines()[-1].get_ydata()[-1] for panel in panels] == [4.0, 4.0]


def test_lambdas_of_one_method_are_in_their_order() -> None:
    pairs = [training_row("model", "BackSlash", lam) for lam in (None, 1.0, 0.1, 3.0)]
    lines = [(f"lambda {training['bits']}", {**training, "lam": training["bits"]}) for training, _ in pairs]
    [panel] = figures.training.shape_over_steps(lines).axes
    names = [line.get_label() for line in panel.get_lines()]
    assert names == ["lambda None", "lambda 0.1", "lambda 1.0", "lambda 3.0"]


def test_zeros_by_layer() -> None:
    layers = [
        {"name": "bert.embeddings.word.weight", "weights": 10, "zeros": 1},
        {"name": "bert.encoder.layer.0.query.weight", "weights": 4, "zeros": 1},
        {"name": "bert.encoder.layer.0.key.weight", "weights": 4, "zeros": 3},
        {"name": "bert.encoder.layer.1.key.weight", "weights": 4, "zeros": 4},
        {"name": "classifier.weight", "weights": 2, "zeros": 0},
    ]
    assert weights.layer_sparsity(layers) == {"in": 0.1, "0": 0.5, "1": 1.0, "out": 0.0}


def test_the_implied_rate_is_the_entropy_of_the_law() -> None:
    sigma = 0.05
    gaussian = 0.5 * math.log2(2 * math.pi * math.e * sigma**2) + 8
    assert implied_rate(2.0, sigma * math.sqrt(2)) == pytest.approx(gaussian, abs=1e-3)
    assert implied_rate(2.0, 1e-6) == pytest.approx(0.0, abs=1e-6)


def test_bands_are_over_seeds_or_over_items() -> None:
    single = row("mine", 2.0, 0.3, metric=0.9, test_items=1000)
    [point] = over_seeds(pd.DataFrame([single])).to_dict("records")
    assert (point["metric_low"], point["metric_high"]) == wilson(900, 1000)
    assert math.isnan(point["cross_entropy_low"]), "without items nothing tells how sure it is"
    seeds = [{**single, "seed": seed, "metric": metric} for seed, metric in enumerate((0.89, 0.90, 0.91))]
    [point] = over_seeds(pd.DataFrame(seeds)).to_dict("records")
    assert point["metric"] == pytest.approx(0.9)
    assert point["metric_high"] - point["metric"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    points = over_seeds(pd.DataFrame([*ROWS, *curve("mine", 0.7, lam=2.0)]))
    assert len(points) == 3, "points of one setting are one, whatever their seed; here the anchor's, and two lambdas"


def test_curves_of_several_seeds_are_one_line_with_a_band() -> None:
    rows = [
        {**point, "lam": None, "step": 2.0**-number}
        for seed in range(3)
        for label, factor in (("anchor", 1.0), ("mine", 0.7 + 0.1 * seed))
        for number, point in enumerate(curve(label, factor, seed=seed))
    ]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    panel = figures.rate_distortion(frame, ["anchor", "mine"]).axes[0]
    mine = next(line for line in panel.get_lines() if line.get_label() == "mine")
    assert list(mine.get_xdata()) == pytest.approx([0.8 * rate for rate in (1, 2, 3, 4, 5)])
    assert len(panel.collections) == 2, "a band for each method"


def test_methods_with_fewer_seeds_have_hollow_markers() -> None:
    rows = [point for seed in range(3) for point in curve("anchor", 1.0, seed=seed)] + curve("mine", 0.7)
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    lines = {line.get_label(): line for line in figures.rate_distortion(frame, ["anchor", "mine"]).axes[0].get_lines()}
    assert lines["mine"].get_markerfacecolor() == "white"
    assert lines["anchor"].get_markerfacecolor() != "white"


def test_bits_per_byte_are_on_the_right_of_the_same_panel() -> None:
    text = {"metric_name": "bits_per_byte", "task": "wikitext2-bytes", "architecture": "gpt-small"}
    rows = [{**point, **text, "metric": point["cross_entropy"] / math.log(2)} for point in ROWS] + ROWS
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    panels = figures.rate_distortion(frame, ["anchor", "mine"]).axes
    assert [panel.get_ylabel() for panel in panels if panel.axison] == [
        "test cross entropy (nats)",
        "test cross entropy (nats)",
        "test accuracy",
    ]
    [right] = panels[0].child_axes
    assert right.get_ylabel() == "test bits/byte"
    right.figure.draw_without_rendering()
    assert right.get_ylim() == pytest.approx([nats / math.log(2) for nats in panels[0].get_ylim()])


def test_crowded_panels_have_bands_over_seeds_only() -> None:
    rows = [point for seed in range(3) for point in curve("anchor", 1.0, seed=seed)]
    rows += [point for number in range(8) for point in curve(f"method {number}", 0.7 + 0.01 * number)]
    frame = pd.DataFrame(rows).assign(best_coder_bits_per_parameter=lambda f: f["rans_bits_per_parameter"])
    labels = list(dict.fromkeys(frame["label"]))
    assert len(figures.rate_distortion(frame, labels).axes[0].collections) == 1
    few = frame[frame["label"].isin(labels[:8])]
    assert len(figures.rate_distortion(few, labels[:8]).axes[0].collections) == 8


def test_settings_that_no_column_is_known_for_stay_apart() -> None:
    points = [row("mine", 2.0, 0.3, setting=f"keep {keep}") for keep in (0.25, 0.5)]
    assert len(over_seeds(pd.DataFrame(points))) == 2
