"""Examples in the documents are run, and what they register passes the conformance tests."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdo.coders import CODERS
from rdo.entropy import ENTROPY_MODELS
from rdo_harness.registries import METHODS
from tests import conformance

ROOT = Path(__file__).parent.parent


def examples(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget afterwards what an example registered."""
    kept = [(registry, registry.names(), dict(registry._plugins)) for registry in (CODERS, ENTROPY_MODELS, METHODS)]
    yield
    for registry, _, plugins in kept:
        registry._plugins.clear()
        registry._plugins.update(plugins)


def test_the_readme_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, sized, optimizer = examples("README.md")
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


def test_the_contributing_examples(registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy_model, method, coder = examples("CONTRIBUTING.md")
    for index, example in enumerate((entropy_model, method, coder)):
        (tmp_path / f"contributed_{index}.py").write_text(example)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module(f"contributed_{index}")
    logistic, bitmap = ENTROPY_MODELS.get("logistic")(), CODERS.get("bitmap")()
    for check in conformance.ENTROPY_MODEL_CHECKS:
        check(logistic)
    conformance.check_description(bitmap)
    for symbols in conformance.sequences().values():
        conformance.check_coder(bitmap, symbols)
    conformance.check_method(METHODS.get("clipping"))
