"""Runs every registered plug-in through tests/conformance.py."""

from __future__ import annotations

import dataclasses

import pytest

from rdo.coders import CODERS, EntropyCoder
from rdo.entropy import ENTROPY_MODELS, EntropyModel
from rdo_harness.registries import METHODS
from tests import conformance

MODELS, CODER_LIST, SEQUENCES = list(conformance.entropy_models()), list(conformance.coders()), conformance.sequences()


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize(
    "check",
    [
        conformance.check_description,
        conformance.check_slope,
        conformance.check_fused_kernels,
        conformance.check_cdf,
        conformance.check_interval_bits,
        conformance.check_fit,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_entropy_model(check: object, model: EntropyModel) -> None:
    check(model)


@pytest.mark.parametrize("coder", CODER_LIST, ids=str)
def test_coder_description(coder: EntropyCoder) -> None:
    conformance.check_description(coder)


@pytest.mark.parametrize("coder", CODER_LIST, ids=str)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_coder_round_trip(coder: EntropyCoder, sequence: str) -> None:
    conformance.check_coder(coder, SEQUENCES[sequence])


@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str) -> None:
    """Every option but the lambdas and steps has a default, the label is the name, and points are distinct."""
    method_type = METHODS.get(name)
    required = {"lams": (0.1, 1.0)} if any(f.name == "lams" for f in dataclasses.fields(method_type)) else {}
    method = method_type(steps=("2^-6", "2^-4"), **required)
    assert method.name == name
    assert method.label == name
    assert method_type(label="another", steps=(0.1,), **required).label == "another"
    assert type(method).__dataclass_params__.frozen
    points = method.points()
    assert len(points) == len(set(points)) >= 2
    assert {point.quantizer.step for point in points} == {2.0**-6, 2.0**-4}
    assert all(point.describe() for point in points)
    with pytest.raises(ValueError, match="at least one quantisation step"):
        method_type(**required)


def test_the_registries_hold_what_the_paper_needs() -> None:
    assert {"generalized_gaussian", "laplace", "gaussian", "lp"} <= set(ENTROPY_MODELS.names())
    assert {"fixed_length", "exp_golomb", "huffman", "rans"} <= set(CODERS.names())
    assert {"backslash", "rtn", "pruning", "lp"} <= set(METHODS.names())
