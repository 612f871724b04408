"""Registries: lazy, extensible, helpful about misspelt and doubled names."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from rdo.errors import DuplicateNameError, RdoError, UnknownNameError
from rdo.registry import Registry

PLUGIN = """
from animals import ANIMALS

@ANIMALS.register("{name}")
class {cls}:
    pass
"""


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[type]:
    """A package with two plug-in files, not yet imported, whose registry is returned."""
    package = tmp_path / "animals"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from rdo.registry import Registry\nANIMALS = Registry('animal', package='animals', group='test.animals')\n"
    )
    (package / "zebra.py").write_text(PLUGIN.format(name="zebra", cls="Zebra"))
    (package / "ant.py").write_text(PLUGIN.format(name="ant", cls="Ant"))
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == "animals"]:
        monkeypatch.delitem(sys.modules, module)
    import animals  # type: ignore[import-not-found]

    return animals.ANIMALS


def test_plugins_load_at_the_first_look_up_only(animals: Registry[type]) -> None:
    assert "animals.zebra" not in sys.modules
    assert animals.names() == ["ant", "zebra"]
    assert animals.get("zebra").__name__ == "Zebra"
    assert [name for name, _ in animals.items()] == ["ant", "zebra"]


def test_unknown_names_get_the_nearest_and_all_known(animals: Registry[type]) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown animal 'zebar'; did you mean 'zebra'\? known: ant, zebra"):
        animals.get("zebar")
    with pytest.raises(UnknownNameError, match=r"unknown animal 'qqqqq'; known: ant, zebra") as caught:
        animals.get("qqqqq")
    assert isinstance(caught.value, RdoError)
    assert isinstance(caught.value, LookupError)


def test_two_plugins_cannot_share_a_name(animals: Registry[type]) -> None:
    class Other:
        pass

    animals.get("ant")
    with pytest.raises(
        DuplicateNameError, match=r"animal 'ant' is registered twice: by animals\.ant\.Ant and by .*Other"
    ):
        animals.register("ant")(Other)
    assert animals.get("ant").__name__ == "Ant"


def test_a_reloaded_module_replaces_its_plugin(animals: Registry[type]) -> None:
    import importlib

    old = animals.get("ant")
    new = importlib.reload(sys.modules["animals.ant"]).Ant
    assert animals.get("ant") is new is not old


def test_a_broken_plugin_fails_every_look_up(animals: Registry[type]) -> None:
    """A half-loaded registry must not pass for a whole one at the second try."""
    broken = Path(sys.modules["animals"].__path__[0]) / "bear.py"
    broken.write_text("import a_module_that_does_not_exist\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            animals.names()
    broken.unlink()
    assert animals.names() == ["ant", "zebra"]


def test_other_distributions_add_plugins_by_entry_points(
    animals: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guest_animals.py").write_text(PLUGIN.format(name="gnu", cls="Gnu"))
    entry_point = importlib.metadata.EntryPoint("gnu", "guest_animals:Gnu", "test.animals")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda *, group: [entry_point] if group == "test.animals" else []
    )
    assert animals.names() == ["ant", "gnu", "zebra"]
    monkeypatch.delitem(sys.modules, "guest_animals")


def test_the_decorator_returns_the_plugin(animals: Registry[type]) -> None:
    @animals.register("cat")
    class Cat:
        pass

    assert animals.get("cat") is Cat
