"""One training loop for every method: the same data, budget and seed; only the rate constraint differs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rdo
from rdo.control import Constant, OnThenOff
from rdo.entropy import entropy_model_from_config
from rdo_harness.architectures.base import Architecture
from rdo_harness.resources import peak_memory_bytes, reset_peak_memory
from rdo_harness.tasks.base import PreparedTask, Task

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a short text about the state."""


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
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.1
    eps: float = 1e-8


@dataclass(frozen=True)
class RateSettings:
    """How the rate enters a training; all of :class:`rdo.constraint.RateConstraint`'s settings, JSON-able.

    Args:
        on: share of the steps with the rate term on; plain training after that.
    """

    lam: float
    entropy_model: dict[str, Any]
    apply: str = "gradient"
    units: str = "bits"
    pooling: str = "global"
    scale_by_lr: bool = False
    precondition: bool = False
    on: float = 1.0


@dataclass(frozen=True)
class Trained:
    """A trained model's weights on disk and what it cost to make them."""

    path: Path
    seconds: float
    peak_memory_bytes: int
    history: list[dict[str, float]]
    cross_entropy: float
    metric: float
    shape: float


def configuration(
    task: Task, architecture: Architecture, budget: Budget, rate: RateSettings | None, seed: int
) -> dict[str, Any]:
    """Everything that determines a training's result, JSON-able."""
    return {
        "task": task.config(),
        "architecture": architecture.config(),
        "budget": asdict(budget),
        "rate": None if rate is None else asdict(rate),
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
) -> Trained:
    """Return the trained model from the cache folder, training it first if it is not there yet."""
    from safetensors import safe_open
    from safetensors.torch import save_model

    config = configuration(prepared.task, architecture, budget, rate, seed)
    path = folder / f"{digest(config)}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model, facts = _train(prepared, architecture, budget, rate, seed, progress)
        partial = path.with_suffix(".partial")
        save_model(model, str(partial), metadata={"facts": json.dumps(facts), "configuration": json.dumps(config)})
        partial.replace(path)
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
) -> tuple[nn.Module, dict[str, Any]]:
    model = architecture.build(seed, prepared.task)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=budget.learning_rate, eps=budget.eps, weight_decay=budget.weight_decay, fused=True
    )
    warmup = max(1, round(budget.warmup * budget.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (budget.steps - step) / max(budget.steps - warmup, 1))
    )
    handle = None if rate is None else _attach(optimizer, model, architecture, budget, rate)
    history: list[dict[str, float]] = []
    reset_peak_memory()
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step, batch in enumerate(prepared.train_batches(budget.batch_size, budget.steps, seed)):
            loss = prepared.loss(model, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the training loss became {value} at step {step}; lower the learning rate")
            if step % max(1, budget.steps // 50) == 0 or step == budget.steps - 1:
                history.append({"step": step, "loss": value, **_rate_facts(handle)})
            progress(step + 1, budget.steps, f"loss {value:.3f}")
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes()
    if handle is not None:
        handle.remove()
    model.eval()
    evaluation = prepared.evaluate(model, "test")
    facts = {
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "history": history,
        "cross_entropy": evaluation.cross_entropy,
        "metric": evaluation.metric,
        "shape": fitted_shape(model, architecture),
    }
    return model, facts


def fitted_shape(model: nn.Module, architecture: Architecture) -> float:
    """Shape nu of one generalized Gaussian fitted to all compressible weights."""
    weights = [p for name, p in model.named_parameters() if architecture.compressible(name, p)]
    constraint = rdo.RateConstraint(((str(i), w) for i, w in enumerate(weights)), lam=0.0)
    return float(constraint.fit()[0])


def _attach(
    optimizer: torch.optim.Optimizer, model: nn.Module, architecture: Architecture, budget: Budget, rate: RateSettings
) -> rdo.Attachment:
    steps_on = round(rate.on * budget.steps)
    return rdo.attach(
        optimizer,
        model,
        lam=Constant(rate.lam) if rate.on >= 1.0 else OnThenOff(rate.lam, steps_on),
        parameters=architecture.compressible,
        entropy_model=entropy_model_from_config(rate.entropy_model),
        apply=rate.apply,
        units=rate.units,
        pooling=rate.pooling,
        scale_by_lr=rate.scale_by_lr,
        precondition=rate.precondition,
        verbose=False,
    )


def _rate_facts(handle: rdo.Attachment | None) -> dict[str, float]:
    if handle is None:
        return {}
    report = handle.rate()
    return {"lam": report.lam, "surrogate_bits_per_parameter": report.surrogate_bits_per_parameter, **report.theta}
