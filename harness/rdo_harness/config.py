"""Dataclasses from TOML tables, with errors that name the file, the key and the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from rdo.errors import ConfigError

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table; lists become tuples.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type; ``where`` starts the message.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}known: {', '.join(sorted(fields))}")
        values[key] = _convert(value, _hint(cls, key), f"{where}: {key}")
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{where}: the key {name!r} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def later(default: Any) -> Any:
    """A dataclass field that was added after results had been published: see :func:`settings`."""
    return dataclasses.field(default=default, metadata={"later": True})


def settings(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, for the hash of a configuration.

    Fields declared with :func:`later` are left out while they have their default, so that what was hashed before they
    existed keeps its hash.
    """
    added = {
        field.name
        for field in dataclasses.fields(options)
        if field.metadata.get("later") and getattr(options, field.name) == field.default
    }
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in added}


def parse_step(text: str | float) -> float:
    """Read a quantisation step: ``2^-8``, ``0.004`` or a number.

    Raises:
        ConfigError: it is neither, or not positive.
    """
    try:
        if isinstance(text, str) and "^" in text:
            base, exponent = text.split("^", 1)
            step = float(base) ** float(exponent)
        else:
            step = float(text)
    except (ValueError, OverflowError, ZeroDivisionError):
        step = -1.0
    if not 0.0 < step < float("inf"):
        raise ConfigError(f"cannot read the step {text!r}; write a positive number like 0.004 or a power like 2^-8")
    return step


def _hint(cls: type, name: str) -> Any:
    """The type of one field, resolved where it was declared; class variables beside it need not be resolvable."""
    declaring = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    holder = types.new_class("holder")
    holder.__annotations__ = {name: declaring.__annotations__[name]}
    return typing.get_type_hints(holder, vars(sys.modules[declaring.__module__]))[name]


def _convert(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list):
            return tuple(_convert(item, typing.get_args(option)[0], where) for item in value)
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is typing.Any or (isinstance(value, origin) and not (origin is int and isinstance(value, bool))):
            return value
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"{where}: expected {names}, got {value!r}")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
