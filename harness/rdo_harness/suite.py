"""Suites: TOML files that name tasks, architectures, methods and training budgets."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from rdo.coders import CODERS
from rdo.errors import ConfigError, UnknownNameError
from rdo.registry import Registry
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import from_table
from rdo_harness.methods.base import RANS, Method
from rdo_harness.registries import ARCHITECTURES, METHODS, TASKS
from rdo_harness.tasks.base import Task
from rdo_harness.training import Budget

T = TypeVar("T")

SCALES = ("small", "medium", "full")
"""Sizes that a suite may come in: minutes on 2 cores; hours there; the paper's models on a GPU."""


@dataclass(frozen=True)
class Part:
    """One comparison: methods that share a task, architectures and a training budget."""

    task: Task
    architectures: tuple[Architecture, ...]
    budget: Budget
    methods: tuple[Method, ...]
    seconds_per_step: float | None = None
    """A guess at a training's speed, for ``--dry-run`` where none was measured."""


@dataclass(frozen=True)
class Suite:
    """Everything that a run needs to know: the parts of a comparison, each run with every seed."""

    name: str
    version: int
    description: str
    parts: tuple[Part, ...]
    seeds: tuple[int, ...]
    paper: str = ""
    """The table or figure of the paper that it repeats, as in paper.toml."""
    scale: str = ""
    subject: str = ""
    """Label of the method that the suite is about; the report says what it saves against each of the others."""
    ablations: tuple[str, ...] = ()
    """Labels of that method with something taken away; the report has them apart from the others."""
    coders: tuple[str, ...] = RANS
    """What every file is coded with, each tensor with the one that takes fewest bytes; a method may say otherwise."""
    parts_of: str = ""
    """The suite whose points it shows in another way."""

    def with_model(self, path: str) -> Suite:
        """The same suite with one model in the place of all architectures: a folder, or a name on the hub.

        Raises:
            ConfigError: the suite's tasks are of a kind that no such model can do.
        """
        names = {"classification": "hf-classifier", "tokens": "hf"}
        parts = []
        for part in self.parts:
            if part.task.kind not in names:
                raise ConfigError(
                    f"--model: task {part.task.name!r} is for models over bytes, trained from scratch; "
                    "use a suite whose tasks are texts with labels, or wikitext2"
                )
            model = from_table(ARCHITECTURES.get(names[part.task.kind]), {"path": path}, "--model")
            parts.append(replace(part, architectures=(model,)))
        return replace(self, parts=tuple(parts))

    def restricted(self, methods: Sequence[str] | None, seeds: int | None) -> Suite:
        """The same suite with some methods (by name or label) and seeds 0 to ``seeds - 1``.

        What is a label to the letter means that one alone: "BackSlash" is not all that is registered as "backslash".

        Raises:
            UnknownNameError: the suite has no such method; the nearest is suggested.
        """
        parts = self.parts
        if methods is not None:
            known = {name.lower() for part in parts for m in part.methods for name in (m.name, m.label)}
            for name in methods:
                if name.lower() not in known:
                    raise UnknownNameError(
                        f"suite {self.name!r} has no method {name!r}; {_hint(name.lower(), known)}"
                        f"it has: {'; '.join(sorted(known))}"
                    )
            labels = {m.label for part in parts for m in part.methods}
            exact = {name for name in methods if name in labels}
            alike = {name.lower() for name in methods if name not in labels}
            chosen = [
                replace(
                    part,
                    methods=tuple(
                        m for m in part.methods if m.label in exact or {m.name.lower(), m.label.lower()} & alike
                    ),
                )
                for part in parts
            ]
            parts = tuple(part for part in chosen if part.methods)
        if seeds is not None and seeds < 1:
            raise ConfigError(f"--seeds must be 1 or more, got {seeds}")
        return replace(self, parts=parts, seeds=self.seeds if seeds is None else tuple(range(seeds)))


@dataclass(frozen=True)
class _Header:
    name: str
    description: str
    version: int = 1
    seeds: tuple[int, ...] = (0,)
    paper: str = ""
    subject: str = ""
    ablations: tuple[str, ...] = ()
    coders: tuple[str, ...] = RANS


@dataclass(frozen=True)
class _PartTable:
    task: str
    architectures: tuple[Any, ...]
    training: dict[str, Any]
    methods: tuple[Any, ...]
    task_options: dict[str, Any] = field(default_factory=dict)
    seconds_per_step: float | None = None


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("rdo_harness") / "suites"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_suite(name_or_path: str, scale: str | None = None) -> Suite:
    """Read a built-in suite by name, or a suite file by path.

    Args:
        scale: one of :data:`SCALES`, for a suite that comes in several.

    Raises:
        UnknownNameError: neither exists; the nearest name is suggested.
        ConfigError: the file is not TOML, a key or value is wrong (the message says where), or the suite does not come
            in that scale.
    """
    return parse_suite(_document(name_or_path), name_or_path, scale)


def scales_of(name_or_path: str) -> list[str]:
    """The scales that a suite comes in; none if it does not come in scales."""
    document = _document(name_or_path)
    original = document.get("suite", {}).get("parts_of")
    return scales_of(str(original)) if original else list(document.get("scale", {}))


def _document(name_or_path: str) -> dict[str, Any]:
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UnknownNameError(f"no suite file at {path}; built-in suites: {', '.join(suite_names())}")
        text = path.read_text(encoding="utf-8")
    else:
        if name_or_path not in suite_names():
            raise UnknownNameError(
                f"unknown suite {name_or_path!r}; {_hint(name_or_path, suite_names())}"
                f"known: {', '.join(suite_names())}, or a path to a .toml file"
            )
        resource = resources.files("rdo_harness") / "suites" / f"{name_or_path}.toml"
        text = resource.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name_or_path}: not a TOML file: {error}") from error


def parse_suite(document: dict[str, Any], where: str, scale: str | None = None) -> Suite:
    """Build a suite from a parsed TOML document; ``where`` starts every error message.

    A suite of one part has the tables [suite], [training] and [[methods]]. One that comes in scales has a list of parts
    for each, [[scale.small]] and so on, with ``task``, ``architectures``, ``training`` and, where they differ from the
    [[methods]] of the suite, ``methods``; its name ends with the scale, the small one unless said otherwise. One that
    shows the rows of another suite in another way names it in ``parts_of`` and has no other table.
    """
    known = {"suite", "training", "methods", "scale"}
    for key in document:
        if key not in known:
            raise ConfigError(f"{where}: unknown table [{key}]; {_hint(key, known)}known: {', '.join(sorted(known))}")
    table = dict(document.get("suite", {}))
    if "parts_of" in table:
        name = str(table.pop("parts_of"))
        original = load_suite(name, scale)
        header = from_table(_Header, _with_scale(table, original.scale), f"{where}: [suite]")
        return Suite(parts=original.parts, scale=original.scale, parts_of=name, **vars(header))
    scaled = "scale" in document
    for key in ["suite"] if scaled else ["methods", "suite", "training"]:
        if not document.get(key):
            raise ConfigError(f"{where}: the table [{key}] is missing or empty")
    if scaled:
        scale = scale or SCALES[0]
        if scale not in document["scale"]:
            has = ", ".join(document["scale"])
            raise ConfigError(f"{where}: no scale {scale!r}; {_hint(scale, document['scale'])}it has: {has}")
    elif scale is not None:
        raise ConfigError(f"{where}: this suite does not come in scales; leave --scale out")
    keys = () if scaled else ("task", "architectures", "task_options")
    own = {key: table.pop(key) for key in keys if key in table}
    header = from_table(_Header, _with_scale(table, scale), f"{where}: [suite]")
    methods = document.get("methods", [])
    if scaled:
        parts = [
            _part({"methods": methods, **part}, header.coders, f"{where}: [[scale.{scale}]] number {number}")
            for number, part in enumerate(document["scale"][scale], 1)
        ]
    else:
        parts = [_part({**own, "training": document["training"], "methods": methods}, header.coders, where)]
    if not header.seeds:
        raise ConfigError(f"{where}: [suite]: give at least one seed")
    labels = {method.label for part in parts for method in part.methods}
    named = [("subject", header.subject)] if header.subject else []
    for key, label in [*named, *(("ablations", label) for label in header.ablations)]:
        if label not in labels:
            raise ConfigError(
                f"{where}: [suite]: no method is labelled {label!r}, as `{key}` says; "
                f"{_hint(label, labels)}there are: {', '.join(sorted(labels))}"
            )
    if header.ablations and not header.subject:
        raise ConfigError(f"{where}: [suite]: `ablations` are of the method that `subject` names; give that")
    return Suite(parts=tuple(parts), scale=scale or "", **vars(header))


def _with_scale(table: dict[str, Any], scale: str | None) -> dict[str, Any]:
    return {**table, "name": f"{table['name']}-{scale}"} if scale and "name" in table else table


def _part(table: dict[str, Any], coders: Sequence[str], where: str) -> Part:
    found = from_table(_PartTable, table, where)
    if not found.architectures:
        raise ConfigError(f"{where}: give at least one architecture")
    methods = [
        _named(METHODS, method, f"{where}: [[methods]] number {number}", coders=list(coders))
        for number, method in enumerate(found.methods, 1)
    ]
    for name in {name for method in methods for name in method.coders}:
        CODERS.get(name)
    labels = [method.label for method in methods]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ConfigError(f"{where}: two methods are labelled {repeated[0]!r}; give one another `label`")
    return Part(
        task=from_table(TASKS.get(found.task), found.task_options, f"{where}: task_options"),
        architectures=tuple(
            _named(ARCHITECTURES, {"name": entry} if isinstance(entry, str) else entry, f"{where}: architectures")
            for entry in found.architectures
        ),
        budget=from_table(Budget, found.training, f"{where}: [training]"),
        methods=tuple(methods),
        seconds_per_step=found.seconds_per_step,
    )


def _named(registry: Registry[type[T]], table: Any, where: str, **defaults: Any) -> T:
    """The plug-in that the key ``name`` of a table names; the other keys are its options, over these defaults."""
    options = {**defaults, **table} if isinstance(table, dict) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: the key 'name' is missing")
    return from_table(registry.get(name), options, f"{where} ({name})")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
