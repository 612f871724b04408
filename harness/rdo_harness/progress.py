"""Shows a run as it goes: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rdo_harness import training
from rdo_harness.cells import Cell
from rdo_harness.metrics import metric_title
from rdo_harness.results import Row


class ProgressDisplay:
    """A :class:`rdo_harness.run.Listener` that tells what runs, how far it is and how long it will still take.

    The time left is estimated from the mean duration of the trainings and points finished in this run, and of the
    current training's steps while there is none, and divided by the processes that share the work.
    """

    def __init__(self, console: Console, jobs: int = 1) -> None:
        self.console = console
        self.jobs = jobs
        self.started = time.perf_counter()
        self._bars: Progress | None = None
        self._overall = self._current = TaskID(0)
        self._trainings = self._points = self._total_points = self._total_trainings = 0
        self._training_seconds: list[float] = []
        self._point_seconds: list[float] = []
        self._in_training: tuple[float, float] | None = None
        self._headed = False

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def plan(self, trainings: int, points: int, finished: int) -> None:
        self._total_trainings, self._total_points = trainings, points
        kept = f" ({finished} finished earlier and kept)" if finished else ""
        todo = f"{counted(trainings, 'training')} and {counted(points, 'operating point')} to do"
        self.console.print(f"{todo}{kept}")
        if points and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._overall = self._bars.add_task("operating points", total=points, note="")
            self._current = self._bars.add_task("", total=1, note="", visible=False)
            self._bars.start()

    def training(self, cell: Cell, number: int) -> training.Progress:
        rate = cell.point.rate
        how = "normal training" if rate is None else f"{cell.method.label}, {rate.describe()}"
        of_all = f"{self._trainings + 1}/{self._total_trainings}"
        title = f"training {of_all}: {cell.architecture.title}, {how}, seed {cell.seed}"
        self.console.print(f"{self._clock()} {title}{self._left()}")
        begun, last = time.perf_counter(), 0.0

        def progress(done: int, total: int, note: str) -> None:
            nonlocal last
            now = time.perf_counter()
            self._in_training = (now - begun, done / total)
            if self._bars is not None:
                short = f"training {self._trainings + 1}/{self._total_trainings}"
                self._bars.update(
                    self._current, description=short, completed=done, total=total, note=note, visible=True
                )
                self._bars.update(self._overall, note=self._left().removeprefix(", "))
            elif now - last > 20.0:
                if last:
                    self.console.print(f"{self._clock()}   step {done}/{total}, {note}{self._left()}")
                last = now

        return progress

    def trained(self, seconds: float) -> None:
        self._trainings += 1
        self._in_training = None
        self._training_seconds.append(seconds)

    def point(self, cell: Cell) -> None:
        if self._bars is not None:
            label, setting = cell.method.label, cell.point.describe()
            self._bars.update(self._current, description=label, completed=0, total=1, note=setting, visible=True)

    def finished(self, row: Row, seconds: float) -> None:
        self._points += 1
        self._point_seconds.append(seconds)
        if "error" in row:
            self.console.print(f"{self._clock()}   failed {row['label']}: {row['error']}", style="red", markup=False)
        else:
            if not self._headed:
                metric = metric_title(row["metric_name"])
                self.console.print(f"{'':7}{_line('method', 'setting', metric, 'nats', 'bits/param')}", style="bold")
                self._headed = True
            self.console.print(f"{self._clock()} {_summary(row)}", highlight=False, markup=False)
        if self._bars is not None:
            self._bars.update(self._overall, completed=self._points, note=self._left().removeprefix(", "))

    def _clock(self) -> str:
        seconds = int(time.perf_counter() - self.started)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"

    def _left(self) -> str:
        trainings = self._total_trainings - self._trainings
        mean = _mean(self._training_seconds)
        spent, share = self._in_training or (0.0, 0.0)
        if mean == 0.0 and share > 0.0:
            mean = spent / share
        if mean == 0.0 and trainings:
            return ""
        left = mean * max(trainings - share, 0.0) + _mean(self._point_seconds, 5.0) * (
            self._total_points - self._points
        )
        left /= self.jobs
        return f", ~{max(1, round(left / 60))} min left" if left > 50 else ", under a minute left"


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(row: Row) -> str:
    return _line(
        row["label"],
        row["setting"],
        f"{row['metric']:.4f}",
        f"{row['cross_entropy']:.4f}",
        f"{row['file_bits_per_parameter']:.3f}",
    )


def _line(label: str, setting: str, metric: str, nats: str, bits: str) -> str:
    """The columns of a finished point; with the clock before them, lines fit into 80 characters."""
    return f"{label:<19} {setting:<25.25} {metric:>9} {nats:>6} {bits:>10}"


def _mean(values: list[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default
