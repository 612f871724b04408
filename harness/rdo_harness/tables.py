"""Tables on a terminal: every column whole when the output goes to a file or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB")
_UNBOUNDED = 10_000


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print rows; columns whose values are all text are aligned left, the others right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        textual = all(isinstance(row[index], str) for row in rows)
        table.add_column(column, justify="left" if textual else "right", no_wrap=not textual, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    console.print(table)


def human_bytes(count: float) -> str:
    """``12.3 MB``; powers of 1000."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.3g} {_UNITS[unit]}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
