"""The rate constraint in the Trainer of transformers, and in what derives from it, such as TRL's trainers."""

from __future__ import annotations

import functools
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from rdo.attach import Attachment, attach
from rdo.coded_rate import coded_rate
from rdo.errors import CheckpointError, ConfigError, IntegrationError
from rdo.files import atomic_write
from rdo.integrations.model_folder import compress_folder
from rdo.quantizers import Quantizer, UniformQuantizer

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise IntegrationError(f"the Trainer of transformers cannot be used: {error}; pip install accelerate") from error

COMPLETE = "rdo.json"
"""File in a checkpoint folder that is written last: without it, saving was interrupted."""
_KEY = "rdo.RateCallback"


class RateCallback(TrainerCallback):
    """Trains under a rate constraint, logs the rate, resumes to the bit, and writes the compressed folder at the end.

    Added to whatever the Trainer logs to: ``rdo/bits_per_parameter`` (order-0 entropy under ``quantizer``),
    ``rdo/sparsity``, ``rdo/lambda``, and the law's parameters, ``rdo/nu`` and ``rdo/scale`` for the default one.

    Args:
        save_to: folder to write at the end of the training: configuration, tokenizer, and ``model.rdo``.
        quantizer, coder: of the rate that is logged and of that folder; defaults as in :func:`rdo.save_compressed`.
        options: those of :func:`rdo.attach`, ``lam`` among them.
    """

    def __init__(
        self,
        *,
        save_to: str | os.PathLike[str] | None = None,
        quantizer: Quantizer | None = None,
        coder: str = "rans",
        **options: Any,
    ) -> None:
        self.handle: Attachment | None = None
        self._save_to = None if save_to is None else Path(save_to)
        self._quantizer, self._coder, self._options = quantizer or UniformQuantizer(), coder, options
        _extend()

    def metrics(self) -> dict[str, float]:
        """What is logged, of the weights as they are now; of sharded weights every process must ask."""
        if self.handle is None:
            return {}
        constraint = self.handle.constraint
        report, names = self.handle.rate(), zip(constraint.names, constraint.parameters, strict=True)
        coded = coded_rate(names, self._quantizer)
        law = {"nu" if name == "shape" else name: value for name, value in report.theta.items()}
        found = {
            "bits_per_parameter": coded.bits_per_parameter,
            "sparsity": coded.sparsity,
            "lambda": report.lam,
            **law,
        }
        return {f"rdo/{name}": value for name, value in (found | law).items()}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **others: Any,
    ) -> None:
        """Attach to the Trainer's optimizer; a training that goes on must find all that it needs."""
        if self.handle is not None:
            self.handle.remove()
        if self._save_to is not None and hasattr(model, "merge_and_unload"):
            raise ConfigError(
                "save_to writes whole models, and this one has adapters: leave save_to out, and compress what "
                "model.merge_and_unload() returns after the training"
            )
        self.handle = attach(optimizer, model, **self._options)
        if state.global_step == 0:
            return
        saved = _saved(state)
        if saved is None:
            raise ConfigError(
                f"the checkpoint at step {state.global_step} was not saved by a training with RateCallback; resume "
                "from one that was, or train without resume_from_checkpoint"
            )
        if not optimizer.state_dict()["state"]:
            raise CheckpointError(
                f"the checkpoint at step {state.global_step} has no optimizer.pt or no scheduler.pt; going on without "
                "would silently diverge. Resume from a complete one: RateCallback.last_checkpoint(output_dir)"
            )
        self.handle.load_state_dict(saved)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Hand over what a checkpoint of this step needs; the Trainer writes it into trainer_state.json."""
        assert self.handle is not None
        cast(dict[str, Any], state.stateful_callbacks)[_KEY] = self.handle.state_dict()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Mark the checkpoint as complete: this is the last that is written of it."""
        if state.is_world_process_zero and not args.save_only_model:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            text = json.dumps({"step": state.global_step, "rate": _saved(state)}).encode()
            if folder.is_dir():  # a search of hyperparameters has folders of its own
                with atomic_write(folder / COMPLETE, len(text)) as file:
                    file.write(text)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **others: Any,
    ) -> None:
        """Write the compressed folder, and leave the optimizer as it was."""
        assert self.handle is not None
        if self._save_to is not None and state.is_world_process_zero:
            with tempfile.TemporaryDirectory(dir=self._save_to.absolute().parent) as temporary:
                for part in (model, processing_class):
                    if part is not None:
                        part.save_pretrained(temporary)
                compress_folder(Path(temporary), self._save_to, quantizer=self._quantizer, coder=self._coder)
        self.handle.remove()

    @staticmethod
    def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
        """The newest checkpoint in a Trainer's folder that was saved to its end, for ``resume_from_checkpoint``.

        The Trainer's own search takes the newest, even if it is empty.
        """
        complete = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")]
        steps = {int(path.name.partition("-")[2]): path for path in complete if path.name.partition("-")[2].isdecimal()}
        return str(steps[max(steps)]) if steps else None


def _saved(state: TrainerState) -> dict[str, Any] | None:
    found: dict[str, Any] | None = cast(dict[str, Any], state.stateful_callbacks).get(_KEY)
    return found


def _extend() -> None:
    """Let ``Trainer.log`` add our numbers: callbacks are called when loggers have had theirs.

    Raises:
        IntegrationError: this version of transformers has no ``Trainer.log(logs)``.
    """
    log = Trainer.log
    if getattr(log, "_rdo", False):
        return
    if "logs" not in inspect.signature(log).parameters:
        raise IntegrationError("Trainer.log has no parameter logs, which rdo extends; tested is transformers 5.23")
    setattr(Trainer, "log", _with_rate(log))  # noqa: B010 (assigning to a method is no type error so)


def _with_rate(log: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(log)
    def extended(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> Any:
        for callback in self.callback_handler.callbacks if "loss" in logs else []:  # not of evaluations
            if isinstance(callback, RateCallback):
                with torch.no_grad():
                    logs = {**logs, **callback.metrics()}
        return log(self, logs, *args, **options)

    extended._rdo = True  # type: ignore[attr-defined]
    return extended
