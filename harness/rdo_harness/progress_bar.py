"""A bar for one long piece of work, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows how much of how much is done, and what is being done, on stderr until the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=1)

        def show(done: int, total: int, what: str) -> None:
            bars.update(bar, completed=done, total=total, description=what)

        yield show


@contextmanager
def weights_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes how many weights have been done since it was last called; ``total`` are to be done."""
    from threading import Lock

    done, lock = 0, Lock()
    with progress_bar() as show:

        def add(weights: int) -> None:
            nonlocal done
            with lock:
                done += weights
                show(done, total, what)

        yield add
