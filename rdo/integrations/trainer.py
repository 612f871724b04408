"""The rate constraint in the Trainer of transformers, and in what derives from it, such as TRL's trainers."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdo.attach import Attachment, TargetAttachment, attach
from rdo.checkpoint import save_compressed
from rdo.coded_rate import coded_rate
from rdo.errors import CheckpointError, ConfigError, IntegrationError
from rdo.integrations.model_folder import COMPRESSED, compress_folder, write_model
from rdo.quantizers import Quantizer, UniformQuantizer
from rdo.state_file import load_state, save_state

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer_utils
except ImportError as error:
    raise IntegrationError(f"the Trainer of transformers cannot be used: {error}; pip install accelerate") from error

STATE = "rdo_state.safetensors"
"""The rate constraint's state in a checkpoint folder. It is written last: without it, saving was interrupted."""
_ADVICE = "Resume from a complete one, RateCallback.last_checkpoint(output_dir), or do not resume"


class RateCallback(TrainerCallback):
    """Trains under a rate constraint, logs the rate, resumes to the bit, and writes the compressed folder at the end.

    Added to whatever the Trainer logs to: ``rdo/bits_per_parameter`` (order-0 entropy under ``quantizer``),
    ``rdo/sparsity``, ``rdo/lambda``, and the law's parameters, ``rdo/nu`` and ``rdo/scale`` for the default one.

    Args:
        save_to: folder to write at the end of the training: configuration, tokenizer, and ``model.rdo``.
        quantizer, coder: of the rate that is logged and of that folder; defaults as in :func:`rdo.save_compressed`.
        options: those of :func:`rdo.attach`, ``lam`` or ``bits_per_parameter`` among them. With a size the folder has
            that size, by the steps that were trained for, and ``quantizer`` is only what is logged.
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
        self.resumes_from: Path | None = None
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
        if self.resumes_from is not None:
            if not optimizer.state_dict()["state"]:
                raise CheckpointError(
                    f"{self.resumes_from} has no optimizer.pt or no scheduler.pt; going on without would silently "
                    f"diverge. {_ADVICE}"
                )
            self.handle.load_state_dict(load_state(self.resumes_from / STATE))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Save the constraint's state, the last that is written of a checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.handle is None or args.save_only_model:
            return
        if self.handle.constraint.shards.sharded or (state.is_world_process_zero and folder.is_dir()):
            save_state(self.handle.state_dict(), folder / STATE)

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
        if self._save_to is not None:
            self._save(self._save_to, model, processing_class, main=state.is_world_process_zero)
        self.handle.remove()

    def _save(self, out: Path, model: Any, processing_class: Any, *, main: bool) -> None:
        """Write the folder; processes that are not ``main`` do their share of a sharded model, and land as it does."""
        assert self.handle is not None
        sized, sharded = isinstance(self.handle, TargetAttachment), self.handle.constraint.shards.sharded

        def write(path: Path) -> None:
            if isinstance(self.handle, TargetAttachment):
                self.handle.save(path)
            else:
                save_compressed(model, path, quantizer=self._quantizer, coder=self._coder)

        if not main:
            if sized or sharded:
                write(out / COMPRESSED)
            return
        with tempfile.TemporaryDirectory(dir=out.absolute().parent) as temporary:
            # What save_pretrained makes of a model's weights matters only where they are compressed from there.
            model.save_pretrained(temporary, **({"state_dict": {}} if sharded else {}))
            if processing_class is not None:
                processing_class.save_pretrained(temporary)
            if sized or sharded:
                write_model(Path(temporary), out, COMPRESSED, write)
            else:
                compress_folder(Path(temporary), out, quantizer=self._quantizer, coder=self._coder)

    @staticmethod
    def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
        """The newest checkpoint in a Trainer's folder that was saved to its end, for ``resume_from_checkpoint``.

        The Trainer's own search takes the newest, even if it is empty.
        """
        complete = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE}")]
        steps = {int(path.name.partition("-")[2]): path for path in complete if path.name.partition("-")[2].isdecimal()}
        return str(steps[max(steps)]) if steps else None


def _extend() -> None:
    """Let ``Trainer.log`` add our numbers, which callbacks could not: they are called when loggers have had theirs. And
    let ``Trainer.train`` tell us where it resumes from.

    Raises:
        IntegrationError: this version of transformers does not have what is extended.
    """
    for name, parameter, extend in (("log", "logs", _with_rate), ("train", "resume_from_checkpoint", _with_source)):
        function = getattr(Trainer, name)
        if getattr(function, "_rdo", False):
            continue
        if parameter not in inspect.signature(function).parameters:
            raise IntegrationError(
                f"Trainer.{name} has no parameter {parameter}, which rdo extends; tested is transformers 5.23"
            )
        extended: Any = functools.wraps(function)(extend(function))
        extended._rdo = True
        setattr(Trainer, name, extended)


def _callbacks(trainer: Any) -> list[RateCallback]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, RateCallback)]


def _with_rate(log: Callable[..., Any]) -> Any:
    def extended(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> Any:
        for callback in _callbacks(self) if "loss" in logs else []:  # not of evaluations
            logs = {**logs, **callback.metrics()}
        return log(self, logs, *args, **options)

    return extended


def _with_source(train: Callable[..., Any]) -> Any:
    def extended(self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        for callback in _callbacks(self):
            callback.resumes_from = _source(resume_from_checkpoint, self.args.output_dir)
        return train(self, resume_from_checkpoint, *args, **options)

    return extended


def _source(asked: str | bool | None, output_dir: str) -> Path | None:
    """The folder that a training resumes from, as the Trainer finds it.

    Raises:
        CheckpointError: it was not saved to its end, or not under a rate constraint.
    """
    newest: Any = trainer_utils.get_last_checkpoint
    found = newest(output_dir) if asked is True else asked
    if not found:
        return None
    if not (Path(found) / STATE).is_file():
        raise CheckpointError(
            f"{found} has no {STATE}: it was not saved to its end, or by a training without RateCallback. {_ADVICE}"
        )
    return Path(found)
