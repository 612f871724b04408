"""Examples in the documents are run, and what they register passes the conformance tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdo.coders import CODERS
from rdo.entropy import ENTROPY_MODELS
from rdo_harness.registries import METHODS
from tests import conformance
from tests.documents import blocks, run_document


def test_the_readme_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, sized, optimizer = (block.text for block in blocks("README.md") if block.language == "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "covers 2 of 4 parameters" in capsys.readouterr().out
    assert (tmp_path / "model.rdo").stat().st_size < 2500 * 2
    exec(compile(sized, "README.md", "exec"), {})
    assert 5.9 < float(capsys.readouterr().out.splitlines()[-1]) <= 6.0
    exec(compile(optimizer, "README.md", "exec"), names)
    before = names["model"].weight.detach().abs().sum()
    names["optimizer"].step()
    assert names["model"].weight.detach().abs().sum() < before


def test_the_contributing_examples(registries: None, tmp_path: Path) -> None:
    run_document("CONTRIBUTING.md", tmp_path)
    logistic, bitmap = ENTROPY_MODELS.get("logistic")(), CODERS.get("bitmap")()
    for check in conformance.ENTROPY_MODEL_CHECKS:
        check(logistic)
    conformance.check_description(bitmap)
    for symbols in conformance.sequences().values():
        conformance.check_coder(bitmap, symbols)


def test_the_extensions_run_as_a_suite(registries: None, tmp_path: Path) -> None:
    rows = run_document("docs/extending.md", tmp_path)["rows"]
    conformance.check_method(METHODS.get("clipping"))
    assert [row["label"] for row in rows] == ["clipping", "clipping", "backslash"]
    assert not [row["error"] for row in rows if "error" in row]
    assert rows[1]["metric"] == 1.0, "the last digit tells"
    assert rows[0]["file_bytes"] <= rows[1]["file_bytes"]


def test_the_example_of_callbacks(tmp_path: Path) -> None:
    names = run_document("docs/integrations.md", tmp_path)
    assert names["callback"].handle is names["sized"].handle is None
