"""One training loop for every method: the same data, budget and seed; only the rate constraint differs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdo.attach import TargetAttachment
from rdo.channels import ChannelSteps
from rdo.quantizers import AllocatedQuantizer
from rdo_harness.architectures.base import Architecture
from rdo_harness.config import later, settings
from rdo_harness.observation import WeightObserver
from rdo_harness.rate_settings import RateSettings, attach, parameter_groups
from rdo_harness.resources import peak_memory_bytes, reset_peak_memory
from rdo_harness.tasks.base import PreparedTask, Task, Teacher
from rdo_harness.training_state import resume, save_state, snapshot

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a short text about the state."""

_AFTER_BASE = 7919
CHECKPOINT_SECONDS = 120.0
"""How often a training's state goes to disk; a killed one loses at most that much."""


@dataclass(frozen=True)
class Budget:
    """What every training of a suite gets: AdamW with linear warm-up and decay.

    Args:
        steps: optimizer steps.
        batch_size: examples (or windows) a step.
        learning_rate: peak of the schedule.
        weight_decay: decoupled weight decay of AdamW.
        warmup: share of the steps in which the learning rate rises.
        eps: of AdamW, added to the root of its second moment.
        base_steps: steps of normal training, with a schedule of their own, that come before and are the same for all;
            for models without pretrained weights.
        base_learning_rate: peak of that schedule; 0 for the same.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.1
    eps: float = 1e-8
    base_steps: int = later(0)
    base_learning_rate: float = later(0.0)

    def base(self) -> Budget | None:
        """The normal training that every model of the suite comes from, or None if there is none."""
        if not self.base_steps:
            return None
        rate = self.base_learning_rate or self.learning_rate
        return replace(self, steps=self.base_steps, learning_rate=rate, base_steps=0, base_learning_rate=0.0)


@dataclass(frozen=True)
class Trained:
    """A trained model's weights on disk, what it cost to make them, and how they came about.

    ``history`` has some 20 steps: the loss, lambda, and the law of the weights (see :class:`WeightObserver`), whose
    fitting does not count in ``seconds``. ``steps`` are those that the weights were rounded to, if the training did:
    of each tensor, or [base, axis, exponents] where its rows or columns have their own.
    """

    path: Path
    seconds: float
    peak_memory_bytes: int
    history: list[dict[str, float]]
    cross_entropy: float
    metric: float
    shape: float
    validation_cross_entropy: float | None = None
    validation_metric: float | None = None
    histogram: dict[str, Any] | None = None
    steps: dict[str, Any] | None = None

    def quantizer(self) -> AllocatedQuantizer | None:
        """What the training rounded the weights with, if it did."""
        if self.steps is None:
            return None
        one = {name: step for name, step in self.steps.items() if isinstance(step, float)}
        channels = {
            name: ChannelSteps(step[0], step[1], torch.tensor(step[2], dtype=torch.int8))
            for name, step in self.steps.items()
            if name not in one
        }
        return AllocatedQuantizer(one, 0.0, "sensitivity", channels=channels)


def configuration(
    task: Task, architecture: Architecture, budget: Budget, rate: RateSettings | None, seed: int
) -> dict[str, Any]:
    """Everything that determines a training's result, JSON-able."""
    return {
        "task": task.config(),
        "architecture": architecture.config(),
        "budget": settings(budget),
        "rate": None if rate is None else settings(rate),
        "seed": seed,
    }


def digest(config: dict[str, Any]) -> str:
    """A short stable hash of a JSON-able configuration."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def trained(
    prepared: PreparedTask,
    architecture: Architecture,
    budget: Budget,
    rate: RateSettings | None,
    seed: int,
    folder: Path,
    progress: Progress,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Trained:
    """Return the trained model from the cache folder, training it first if it is not there yet.

    Of several processes one trains and the others wait for it. A training that was killed goes on from its last
    checkpoint, to the same bits that it would have reached.
    """
    from filelock import FileLock
    from safetensors.torch import save_model

    config = configuration(prepared.task, architecture, budget, rate, seed)
    path = folder / f"{digest(config)}.safetensors"
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / path.stem):
        if not path.exists():
            checkpoint = path.with_suffix(".checkpoint")
            for left in folder.glob(f".{checkpoint.name}.*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            model, facts = _train(prepared, architecture, budget, rate, seed, progress, checkpoint, checkpoint_seconds)
            partial = path.with_suffix(".partial")
            save_model(model, str(partial), metadata={"facts": json.dumps(facts), "configuration": json.dumps(config)})
            partial.replace(path)
            checkpoint.unlink(missing_ok=True)
    return _read(path)


def stored(key: str, folder: Path) -> Trained | None:
    """The trained model with this key, if the cache folder has it."""
    path = folder / f"{key}.safetensors"
    return _read(path) if path.exists() else None


def _read(path: Path) -> Trained:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return Trained(path=path, **facts)


def load_trained(model: nn.Module, source: Trained) -> nn.Module:
    """Fill a freshly built model with trained weights; every parameter must be there."""
    from safetensors.torch import load_model

    load_model(model, str(source.path), strict=True)
    return model.eval()


def _train(
    prepared: PreparedTask,
    architecture: Architecture,
    budget: Budget,
    rate: RateSettings | None,
    seed: int,
    progress: Progress,
    checkpoint: Path,
    checkpoint_seconds: float,
) -> tuple[nn.Module, dict[str, Any]]:
    model = architecture.build(seed, prepared.task)
    base, data_seed = budget.base(), seed
    if base is not None:
        load_trained(model, trained(prepared, architecture, base, None, seed, checkpoint.parent, lambda *_: None))
        data_seed = seed + _AFTER_BASE  # other batches than those of the base
    model.train()
    groups = parameter_groups(model, architecture, budget.weight_decay, rate)
    optimizer = torch.optim.AdamW(groups, lr=budget.learning_rate, eps=budget.eps, fused=True)
    warmup = max(1, round(budget.warmup * budget.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (budget.steps - step) / max(budget.steps - warmup, 1))
    )
    quality: dict[str, Any] = {}
    teacher: Teacher | None = None
    if rate is not None and (rate.distilled or rate.increase is not None):
        normal = trained(prepared, architecture, budget, None, seed, checkpoint.parent, lambda *_: None)
        if rate.distilled:
            teacher = Teacher(load_trained(architecture.build(seed, prepared.task), normal), rate.distilled)
        if rate.increase is not None:
            assert normal.validation_cross_entropy is not None
            quality = {
                "max_loss": (1.0 + rate.increase) * normal.validation_cross_entropy,
                "evaluate": lambda model: prepared.evaluate(model, "validation").cross_entropy,
            }
    handle = None if rate is None else attach(optimizer, model, architecture, budget.steps, rate, quality)
    observer = WeightObserver(model, architecture)
    stateful = {"optimizer": optimizer, "schedule": schedule, **({} if handle is None else {"rate": handle})}
    history: list[dict[str, float]] = []
    begin, earlier_seconds, earlier_peak = 0, 0.0, 0
    reset_peak_memory()
    started = saved = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint.exists():
            state = resume(checkpoint, model, stateful)
            begin, history = state["step"], state["history"]
            earlier_seconds, earlier_peak = state["seconds"], state["peak_memory_bytes"]
        # The batches are a function of the seed, so their number is the position in the data.
        batches = prepared.train_batches(budget.batch_size, budget.steps, data_seed)
        for step, batch in enumerate(islice(batches, begin, None), begin):
            loss = prepared.loss(model, batch, teacher)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the training loss became {value} at step {step}; lower the learning rate")
            if step % max(1, budget.steps // 20) == 0 or step == budget.steps - 1:
                before = time.perf_counter()
                lam = 0.0 if handle is None else handle.rate().lam
                history.append({"step": step, "loss": value, "lam": lam, **observer.law()})
                started += time.perf_counter() - before
            if time.perf_counter() - saved >= checkpoint_seconds and step + 1 < budget.steps:
                facts = {
                    "step": step + 1,
                    "history": history,
                    "seconds": earlier_seconds + time.perf_counter() - started,
                    "peak_memory_bytes": max(earlier_peak, peak_memory_bytes()),
                }
                save_state(checkpoint, {**facts, **snapshot(model, stateful)})
                saved = time.perf_counter()
            progress(step + 1, budget.steps, f"loss {value:.3f}")
    seconds = earlier_seconds + time.perf_counter() - started
    peak = max(earlier_peak, peak_memory_bytes())
    steps = None
    if isinstance(handle, TargetAttachment):
        handle.land()
        found = handle.quantizer()
        channels = {name: [own.base, own.axis, own.exponents.tolist()] for name, own in found.channels.items()}
        steps = {**found.step_of, **channels}
    if handle is not None:
        handle.remove()
    model.eval()
    test, validation = (prepared.evaluate(model, split) for split in ("test", "validation"))
    facts = {
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "history": history,
        "cross_entropy": test.cross_entropy,
        "metric": test.metric,
        "validation_cross_entropy": validation.cross_entropy,
        "validation_metric": validation.metric,
        "shape": observer.law()["shape"],
        "histogram": observer.histogram(),
        "steps": steps,
    }
    return model, facts
