"""Named plug-ins: one file and one decorator each, found lazily, extensible from other packages by entry points."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from rdo.errors import DuplicateNameError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to plug-ins of one kind.

    Plug-ins register themselves with the :meth:`register` decorator when their module is imported. Modules of
    ``package`` and entry points of ``group`` are imported at the first look-up, never at import time.

    Args:
        kind: what a plug-in is called in messages, for instance ``"coder"``.
        package: import name of the package whose modules hold the built-in plug-ins.
        group: entry-point group through which other distributions add theirs.
    """

    def __init__(self, kind: str, *, package: str, group: str) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self._plugins: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a plug-in under ``name``.

        Raises:
            DuplicateNameError: another plug-in already has the name.
        """

        def decorate(plugin: T) -> T:
            known = self._plugins.get(name)
            if known is not None and _identity(known) != _identity(plugin):
                raise DuplicateNameError(
                    f"{self.kind} {name!r} is registered twice: by {_identity(known)} and by {_identity(plugin)}; "
                    "rename one of them"
                )
            self._plugins[name] = plugin
            return plugin

        return decorate

    def get(self, name: str) -> T:
        """Return the plug-in filed under ``name``.

        Raises:
            UnknownNameError: nothing is; the message suggests the nearest name.
        """
        self._load()
        if name in self._plugins:
            return self._plugins[name]
        near = difflib.get_close_matches(name, self._plugins, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownNameError(f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.names())}")

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._load()
        return sorted(self._plugins)

    def items(self) -> Iterator[tuple[str, T]]:
        """Every ``(name, plug-in)``, sorted by name."""
        return ((name, self._plugins[name]) for name in self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry_point in importlib.metadata.entry_points(group=self.group):
            entry_point.load()
        self._loaded = True


def _identity(plugin: object) -> str:
    return f"{getattr(plugin, '__module__', '?')}.{getattr(plugin, '__qualname__', repr(plugin))}"
