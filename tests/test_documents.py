"""Examples in the documents are run, and what they register passes the conformance tests."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdo.coders import CODERS
from rdo.entropy import ENTROPY_MODELS
from rdo_harness.registries import ARCHITECTURES, METHODS, TASKS
from tests import conformance

ROOT = Path(__file__).parent.parent


def examples(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget afterwards what an example registered."""
    registries = (CODERS, ENTROPY_MODELS, METHODS, TASKS, ARCHITECTURES)
    kept = [(registry, registry.names(), dict(registry._plugins)) for registry in registries]
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


def load(examples: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """Import each example as a module of its own."""
    monkeypatch.syspath_prepend(folder)
    for index, example in enumerate(examples):
        (folder / f"{prefix}_{index}.py").write_text(example)
        importlib.import_module(f"{prefix}_{index}")


def test_the_contributing_examples(registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(examples("CONTRIBUTING.md"), tmp_path, monkeypatch, "contributed")
    logistic, bitmap = ENTROPY_MODELS.get("logistic")(), CODERS.get("bitmap")()
    for check in conformance.ENTROPY_MODEL_CHECKS:
        check(logistic)
    conformance.check_description(bitmap)
    for symbols in conformance.sequences().values():
        conformance.check_coder(bitmap, symbols)


def test_the_extensions_run_as_a_suite(registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *plugins, script = examples("docs/extending.md")
    load(plugins, tmp_path, monkeypatch, "extension")
    conformance.check_method(METHODS.get("clipping"))
    [suite] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    (tmp_path / "parity.toml").write_text(suite)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(script, "docs/extending.md", "exec"), names)
    rows = names["rows"]
    assert [row["label"] for row in rows] == ["clipping", "clipping", "backslash"]
    assert not [row["error"] for row in rows if "error" in row]
    assert rows[1]["metric"] == 1.0, "the last digit tells"
    assert rows[0]["file_bytes"] <= rows[1]["file_bytes"]


def test_the_example_of_callbacks() -> None:
    (example,) = examples("docs/integrations.md")
    names: dict[str, object] = {}
    exec(compile(example, "docs/integrations.md", "exec"), names)
    assert names["callback"].handle is names["sized"].handle is None
