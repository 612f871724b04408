from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdo.errors import ConfigError, UnknownNameError
from rdo.quantizers import RelativeQuantizer, UniformQuantizer
from rdo_harness.cells import cells
from rdo_harness.config import parse_step
from rdo_harness.results import read_rows
from rdo_harness.suite import SCALES, Suite, load_suite, parse_suite, scales_of, suite_names

RESULTS = Path(__file__).parents[2] / "results" / "runs"


def test_every_built_in_suite_loads() -> None:
    assert {"quickstart", "classification", "language-model"} <= set(suite_names())
    for name in suite_names():
        suite = load_suite(name)
        if scales_of(name):
            assert suite.name == f"{name}-small"
            continue
        assert suite.name == name
        labels = {method.name for part in suite.parts for method in part.methods}
        if name.startswith("size-"):
            assert {"rtn", "qat", "backslash-size"} <= labels
            # The paper's form is asked for where training is long enough for it.
            assert "backslash" in labels or name == "size-short"
            continue
        assert {"rtn", "backslash"} <= labels
        if name == "lambda":
            continue
        assert {"pruning", "lp"} <= labels
        regularisers = {method.p for part in suite.parts for method in part.methods if method.name == "lp"}  # type: ignore[attr-defined]
        assert regularisers == {0.5, 1.0, 2.0}


def test_scales_are_lists_of_parts(document: dict[str, Any]) -> None:
    part = {key: document["suite"].pop(key) for key in ("task", "architectures")} | {"training": document["training"]}
    other = {**part, "methods": [{"name": "rtn", "steps": ["2^-2"]}], "architectures": [{"name": "tiny-mlp"}]}
    document["scale"] = {"small": [part], "full": [part, other]}
    del document["training"]
    small, full = (parse_suite(document, "my.toml", scale) for scale in (None, "full"))
    assert (small.name, full.name) == ("tiny-small", "tiny-full")
    assert small.parts == full.parts[:1]
    assert [method.name for method in full.parts[1].methods] == ["rtn"]
    with pytest.raises(ConfigError, match="no scale 'ful'; did you mean 'full'"):
        parse_suite(document, "my.toml", "ful")
    del other["training"]
    with pytest.raises(ConfigError, match=r"my.toml: \[\[scale.full\]\] number 2: the key 'training' is missing"):
        parse_suite(document, "my.toml", "full")
    with pytest.raises(ConfigError, match="does not come in scales"):
        load_suite("quickstart", "small")


PAPER = [name for name in suite_names() if name.startswith("paper-")]


def test_every_table_and_figure_of_the_paper_comes_in_three_scales() -> None:
    assert {f"paper-table{n}" for n in (3, 4, 5, 6)} | {f"paper-fig{n}" for n in range(1, 9)} <= set(PAPER)
    for name in PAPER:
        for scale in SCALES if name != "paper-questions" else SCALES[:1]:
            suite = load_suite(name, scale)
            assert suite.name == f"{name}-{scale}"
            assert suite.paper == name.removeprefix("paper-")
            keys = [cell.key for cell in cells(suite)]
            assert len(keys) == len(set(keys))


def test_small_suites_share_their_trainings() -> None:
    """Nothing is trained twice: the whole paper at the small scale is this many trainings."""
    trainings = [cell.training_key for name in PAPER for cell in cells(load_suite(name))]
    assert len(set(trainings)) == 31
    assert {cell.key for cell in cells(load_suite("paper-fig2"))} == {
        cell.key for cell in cells(load_suite("paper-fig4"))
    }


def test_points_of_a_suite(tiny_suite: Suite) -> None:
    points = {method.label: method.points() for method in tiny_suite.parts[0].methods}
    assert [point.quantizer for point in points["normal + RTN"]] == [
        UniformQuantizer(step=2.0**-n) for n in (2, 3, 4, 6)
    ]
    assert [point.sparsity for point in points["pruning"]] == [0.5, 0.8]
    assert [point.rate.lam for point in points["backslash"] if point.rate] == [0.01, 0.01, 0.1, 0.1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["training"].update(stepz=3), r"\[training\]: unknown key 'stepz'; did you mean 'steps'"),
        (
            lambda d: d["methods"][0].update(step=["2^-2"]),
            r"number 1 \(rtn\): unknown key 'step'; did you mean 'steps'",
        ),
        (lambda d: d["training"].update(steps="many"), r"steps: expected int, got 'many'"),
        (lambda d: d["training"].update(steps=True), r"steps: expected int, got True"),
        (lambda d: d["training"].pop("learning_rate"), r"the key 'learning_rate' is missing"),
        (lambda d: d.update(trainin={}), r"unknown table \[trainin\]; did you mean 'training'"),
        (lambda d: d.pop("methods"), r"the table \[methods\] is missing or empty"),
        (lambda d: d["methods"][0].pop("name"), r"number 1: the key 'name' is missing"),
        (lambda d: d["methods"][0].update(steps=[]), r"at least one quantisation step"),
        (lambda d: d["methods"][0].update(steps=["2^x"]), r"cannot read the step '2\^x'"),
        (lambda d: d["methods"][1].update(sparsities=[1.5]), r"between 0 and 1"),
        (lambda d: d["methods"][2].update(label="normal + RTN"), r"two methods are labelled 'normal \+ RTN'"),
        (lambda d: d["suite"].update(seeds=[]), r"at least one seed"),
        (
            lambda d: d["suite"].update(subject="normal + RTM"),
            r"no method .* as `subject` says; did you mean 'normal \+",
        ),
        (
            lambda d: d["suite"].update(subject="normal + RTN", ablations=["prunin"]),
            r"no method .* as `ablations` says; did you mean 'pruning'",
        ),
        (lambda d: d["suite"].update(ablations=["pruning"]), r"`ablations` are of the method that `subject` names"),
    ],
)
def test_a_wrong_suite_says_where_and_what(document: dict[str, Any], change: Any, message: str) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_suite(changed, "my.toml")
    assert str(caught.value).startswith("my.toml: ")


def test_unknown_names_suggest_the_nearest(document: dict[str, Any], tmp_path: Path) -> None:
    document["methods"][2]["name"] = "backslsh"
    with pytest.raises(UnknownNameError, match="did you mean 'backslash'"):
        parse_suite(document, "my.toml")
    with pytest.raises(UnknownNameError, match="did you mean 'quickstart'"):
        load_suite("quikstart")
    with pytest.raises(UnknownNameError, match="no suite file"):
        load_suite(str(tmp_path / "absent.toml"))
    (tmp_path / "broken.toml").write_text("[suite\n")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_suite(str(tmp_path / "broken.toml"))


def test_restriction_by_name_label_and_seeds(tiny_suite: Suite) -> None:
    assert [m.label for m in tiny_suite.restricted(["Normal + RTN", "pruning"], None).parts[0].methods] == [
        "normal + RTN",
        "pruning",
    ]
    assert tiny_suite.restricted(None, 3).seeds == (0, 1, 2)
    with pytest.raises(UnknownNameError, match="did you mean 'pruning'"):
        tiny_suite.restricted(["prunning"], None)
    with pytest.raises(ConfigError, match="1 or more"):
        tiny_suite.restricted(None, 0)


def test_relative_steps_make_relative_quantizers(document: dict[str, Any]) -> None:
    document["methods"][0].update(steps=[0.25], relative_steps=[0.5], granularity="row")
    quantizers = parse_suite(document, "my.toml").parts[0].methods[0].quantizers()
    assert quantizers == [UniformQuantizer(step=0.25), RelativeQuantizer(ratio=0.5, granularity="row")]


@pytest.mark.parametrize(("text", "step"), [("2^-8", 2.0**-8), ("0.004", 0.004), (3, 3.0), ("10^-2", 0.01)])
def test_steps_are_read(text: str | float, step: float) -> None:
    assert parse_step(text) == pytest.approx(step, rel=1e-15)


@pytest.mark.parametrize("text", ["", "0", "-1", "2^", "nan", "inf", "0^-1", "2^99999"])
def test_bad_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="positive number"):
        parse_step(text)


@pytest.mark.parametrize("name", ["quickstart", "classification", "language-model", "paper-table4"])
def test_committed_rows_are_still_those_of_their_suite(name: str) -> None:
    """A change to how points are hashed would orphan every result that is published."""
    suite = load_suite(name)
    rows = {row["key"] for row in read_rows(RESULTS / f"{suite.name}.jsonl")}
    assert rows
    assert rows <= {cell.key for cell in cells(suite)}


def test_options_of_a_point_are_part_of_its_key(tiny_suite: Suite) -> None:
    first = next(cells(tiny_suite))
    others = [replace(first, point=replace(first.point, options={"bits": bits})) for bits in (3, 4)]
    assert len({first.key, *(cell.key for cell in others)}) == 3
    assert others[0].point.describe() == "bits 3, step 0.25"


def test_a_label_to_the_letter_is_that_method_alone() -> None:
    suite = load_suite("quickstart")

    def chosen(*names: str) -> list[str]:
        return [method.label for part in suite.restricted(names, None).parts for method in part.methods]

    assert chosen("BackSlash") == ["BackSlash"]
    assert chosen("backslash") == ["BackSlash", "BackSlash, gradient"]
    assert chosen("l1", "BackSlash") == ["BackSlash", "L1"]


def test_coders_of_a_suite_are_those_of_its_methods_unless_they_say_otherwise(document: dict[str, Any]) -> None:
    lossless = copy.deepcopy(document)
    lossless["methods"].append({"name": "zstd"})
    plain = {cell.key for cell in cells(parse_suite(lossless, "my.toml"))}
    document["suite"]["coders"] = ["rans", "context"]
    document["methods"][1]["coders"] = ["rans"]
    document["methods"].append({"name": "zstd"})
    document["methods"].append({"name": "qat", "bits": [2.0]})
    document["methods"].append({"name": "qat", "label": "rANS", "bits": [2.0], "coders": ["rans"]})
    both = list(cells(parse_suite(document, "my.toml")))
    same = {cell.method.label for cell in both if cell.key in plain}
    assert same == {"pruning", "zstd"}
    keys = {cell.method.label: cell.training_key for cell in both if cell.method.name == "qat"}
    assert keys["qat"] != keys["rANS"]  # a training to a size counts with the coders
    assert both[0].training_key != keys["qat"]
    document["suite"]["coders"] = ["rans", "contxt"]
    with pytest.raises(UnknownNameError, match="unknown coder 'contxt'; did you mean 'context'"):
        parse_suite(document, "my.toml")
