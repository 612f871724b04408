"""Figures that are known to have become worse, and why that is accepted."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path

from rdo.errors import ConfigError

OVERRIDES = Path(__file__).with_name("overrides.toml")


def accepted(known: Collection[str], path: Path = OVERRIDES) -> dict[str, float]:
    """Values up to which figures are accepted, by label.

    Raises:
        ConfigError: an entry lacks its reason or names no figure.
    """
    found = {}
    for number, entry in enumerate(tomllib.loads(path.read_text(encoding="utf-8")).get("accept", []), 1):
        where = f"{path.name}, entry {number}"
        if set(entry) != {"figure", "up_to", "reason"}:
            raise ConfigError(f"{where} has {sorted(entry)}; it needs exactly figure, up_to and reason")
        if not isinstance(entry["reason"], str) or len(entry["reason"].split()) < 3:
            raise ConfigError(f"{where}: the reason must say why {entry['figure']!r} may become worse")
        if entry["figure"] not in known:
            raise ConfigError(f"{where}: there is no figure {entry['figure']!r}; `--list` prints their names")
        if not isinstance(entry["up_to"], int | float):
            raise ConfigError(f"{where}: up_to is {entry['up_to']!r}; it must be a number in the figure's unit")
        found[entry["figure"]] = float(entry["up_to"])
    return found
