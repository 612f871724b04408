"""Tasks of EleutherAI's lm-evaluation-harness on a model that is in memory; the extra ``lm-eval``."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'backslash-rdo[lm-eval]'"


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task, or of a group of tasks.

    Attributes:
        filter: how lm-evaluation-harness turned the model's output into an answer; mostly ``"none"``.
        stderr: standard error over the items as lm-evaluation-harness estimates it; None where it gives none.
        higher_is_better: None where the task does not say.
        shots: solved examples before each item.
        items: how many items were evaluated; None for a group.
        version: of the task; figures of different versions are not comparable.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    shots: int | None
    items: int | None
    version: str | None


def evaluate_tasks(
    model: torch.nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    include_path: Path | None = None,
) -> list[TaskMetric]:
    """Run tasks, with the seeds and settings that lm-evaluation-harness has by default.

    Args:
        model: a causal language model of transformers.
        tokenizer: the one that it was trained with.
        tasks: names or patterns (``"mmlu_*"``) of tasks and groups.
        limit: evaluate the first so many items of each task only.
        shots: solved examples before each item, in place of what a task asks for.
        include_path: a folder with task files (YAML) of one's own. They may name Python functions, which are run.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or knows no such task.
        DataError: a task's data cannot be had, or the task cannot be run.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"tasks of lm-evaluation-harness need its package ({error}); install it: {INSTALL}"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _task_manager(tasks, include_path)
    try:
        found: Any = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=manager.match_tasks(list(tasks)),
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            log_samples=False,
        )
    except Exception as error:  # of the hub's client, of datasets, of a task's own code
        advice = (
            "Data sets come from the Hugging Face hub; where it cannot be reached, give a folder with tasks over local "
            "files (--include-path)"
        )
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            advice = (
                "The tokenizer has no token for the beginning or the end of a text, one of which is put before whole "
                "texts: set its eos_token"
            )
        raise DataError(
            f"lm-evaluation-harness could not run {', '.join(tasks)}: {type(error).__name__}: {error}. {advice}"
        ) from error
    return _metrics(found)


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """What finds the tasks; that of the thousands that come with the package takes half a minute."""
    from lm_eval.tasks import TaskManager

    own: Any = None
    if include_path is not None:
        if not include_path.is_dir():
            raise ConfigError(f"{include_path}: expected a folder with task files (*.yaml)")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    manager: Any = TaskManager(include_path=str(include_path) if include_path is not None else None)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"lm-evaluation-harness knows no task {task!r}; {hint}`lm-eval ls tasks` lists all")
    return manager


def _metrics(found: Any) -> list[TaskMetric]:
    metrics = []
    for task, values in found["results"].items():
        higher = found.get("higher_is_better", {}).get(task, {})
        version = found.get("versions", {}).get(task)
        items = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in sorted(values.items()):
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filtered}")
            metrics.append(
                TaskMetric(
                    task=task,
                    metric=metric,
                    filter=filtered,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    higher_is_better=higher.get(metric),
                    shots=found.get("n-shot", {}).get(task),
                    items=items,
                    version=None if version is None else str(version),
                )
            )
    return metrics
