"""Suites: TOML files that name a task, architectures, methods and a training budget."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rdo.errors import ConfigError, UnknownNameError
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import from_table
from rdo_harness.methods.base import Method
from rdo_harness.registries import ARCHITECTURES, METHODS, TASKS
from rdo_harness.tasks.base import Task
from rdo_harness.training import Budget


@dataclass(frozen=True)
class Suite:
    """Everything that a run needs to know: a cross product of architectures, methods and seeds over one task."""

    name: str
    version: int
    description: str
    task: Task
    architectures: tuple[Architecture, ...]
    budget: Budget
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]

    def restricted(self, methods: Sequence[str] | None, seeds: int | None) -> Suite:
        """The same suite with some methods (by name or label) and seeds 0 to ``seeds - 1``.

        Raises:
            UnknownNameError: the suite has no such method; the nearest is suggested.
        """
        chosen = self.methods
        if methods is not None:
            known = {name.lower() for method in self.methods for name in (method.name, method.label)}
            for name in methods:
                if name.lower() not in known:
                    near = difflib.get_close_matches(name.lower(), known, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise UnknownNameError(
                        f"suite {self.name!r} has no method {name!r}; {hint}it has: {', '.join(sorted(known))}"
                    )
            wanted = {name.lower() for name in methods}
            chosen = tuple(m for m in self.methods if {m.name.lower(), m.label.lower()} & wanted)
        if seeds is not None and seeds < 1:
            raise ConfigError(f"--seeds must be 1 or more, got {seeds}")
        return replace(self, methods=chosen, seeds=self.seeds if seeds is None else tuple(range(seeds)))


@dataclass(frozen=True)
class _Header:
    name: str
    description: str
    task: str
    architectures: tuple[str, ...]
    version: int = 1
    seeds: tuple[int, ...] = (0,)
    task_options: dict[str, Any] = field(default_factory=dict)


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("rdo_harness") / "suites"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_suite(name_or_path: str) -> Suite:
    """Read a built-in suite by name, or a suite file by path.

    Raises:
        UnknownNameError: neither exists; the nearest name is suggested.
        ConfigError: the file is not TOML, or a key or value is wrong; the message says where.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UnknownNameError(f"no suite file at {path}; built-in suites: {', '.join(suite_names())}")
        text = path.read_text(encoding="utf-8")
    else:
        if name_or_path not in suite_names():
            near = difflib.get_close_matches(name_or_path, suite_names(), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownNameError(
                f"unknown suite {name_or_path!r}; {hint}known: {', '.join(suite_names())}, or a path to a .toml file"
            )
        resource = resources.files("rdo_harness") / "suites" / f"{name_or_path}.toml"
        text = resource.read_text(encoding="utf-8")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name_or_path}: not a TOML file: {error}") from error
    return parse_suite(document, name_or_path)


def parse_suite(document: dict[str, Any], where: str) -> Suite:
    """Build a suite from a parsed TOML document; ``where`` starts every error message."""
    known = {"suite", "training", "methods"}
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{where}: unknown table [{key}]; {hint}known: {', '.join(sorted(known))}")
    for key in sorted(known):
        if not document.get(key):
            raise ConfigError(f"{where}: the table [{key}] is missing or empty")
    header = from_table(_Header, document["suite"], f"{where}: [suite]")
    if not header.seeds or not header.architectures:
        raise ConfigError(f"{where}: [suite]: give at least one seed and one architecture")
    methods = []
    for number, table in enumerate(document["methods"], 1):
        options = dict(table)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{where}: [[methods]] number {number}: the key 'name' is missing")
        methods.append(from_table(METHODS.get(name), options, f"{where}: [[methods]] number {number} ({name})"))
    labels = [method.label for method in methods]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ConfigError(f"{where}: two methods are labelled {repeated[0]!r}; give one another `label`")
    return Suite(
        name=header.name,
        version=header.version,
        description=header.description,
        task=from_table(TASKS.get(header.task), header.task_options, f"{where}: [suite] task_options"),
        architectures=tuple(from_table(ARCHITECTURES.get(name), {}, where) for name in header.architectures),
        budget=from_table(Budget, document["training"], f"{where}: [training]"),
        methods=tuple(methods),
        seeds=header.seeds,
    )
