"""Runs every registered plug-in through tests/conformance.py."""

from __future__ import annotations

import pytest

from rdo.coders import CODERS, EntropyCoder
from rdo.entropy import ENTROPY_MODELS, EntropyModel
from rdo_harness.registries import METHODS
from tests import conformance

MODELS, CODER_LIST, SEQUENCES = list(conformance.entropy_models()), list(conformance.coders()), conformance.sequences()


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize(
    "check", conformance.ENTROPY_MODEL_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
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
    method_type = METHODS.get(name)
    assert method_type.name == name
    conformance.check_method(method_type)


def test_the_registries_hold_what_the_paper_needs() -> None:
    assert {"generalized_gaussian", "laplace", "gaussian", "lp"} <= set(ENTROPY_MODELS.names())
    assert {"fixed_length", "exp_golomb", "huffman", "rans"} <= set(CODERS.names())
    assert {"backslash", "rtn", "pruning", "lp"} <= set(METHODS.names())
