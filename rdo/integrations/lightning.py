"""The rate constraint in PyTorch Lightning: a callback that attaches, logs, and resumes with its checkpoints."""

from __future__ import annotations

import os
from typing import Any

from rdo.attach import Attachment, TargetAttachment, attach
from rdo.checkpoint import save_compressed
from rdo.coded_rate import coded_rate
from rdo.errors import ConfigError, IntegrationError
from rdo.quantizers import Quantizer, UniformQuantizer

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise IntegrationError(f"PyTorch Lightning cannot be used: {error}; pip install pytorch-lightning") from error


class RateCallback(Callback):
    """Trains under a rate constraint. Its state is part of Lightning's checkpoints, which resume to the bit.

    Logged where Lightning logs, every ``log_every_n_steps``: ``rdo/bits_per_parameter`` (order-0 entropy under
    ``quantizer``), ``rdo/sparsity``, ``rdo/lambda``, and the law's parameters, ``rdo/nu`` and ``rdo/scale`` for the
    default one.

    Args:
        save_to: compressed file to write at the end of the training, from the module's ``state_dict``.
        quantizer, coder: of the rate that is logged and of that file; defaults as in :func:`rdo.save_compressed`.
        options: those of :func:`rdo.attach`, ``lam`` or ``bits_per_parameter`` among them. With a size the file has
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
        self._save_to, self._coder, self._options = save_to, coder, options
        self._quantizer = quantizer or UniformQuantizer()
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module's only optimizer; a training that goes on takes its state."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"RateCallback takes a module with one optimizer, this one has {len(trainer.optimizers)}; call "
                "rdo.attach in configure_optimizers: for each, or with a list of those whose gradients come together"
            )
        self.handle = attach(trainer.optimizers[0], pl_module, **self._options)
        if self._saved is not None:
            self.handle.load_state_dict(self._saved)
        elif trainer.global_step:
            raise ConfigError("the checkpoint was not saved by a training with RateCallback; resume from one that was")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, when Lightning does."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # set by one of its connectors
        if self.handle is None or not trainer.loggers or trainer.global_step % every:
            return
        constraint, report = self.handle.constraint, self.handle.rate()
        coded = coded_rate(zip(constraint.names, constraint.parameters, strict=True), self._quantizer)
        law = {"nu" if name == "shape" else name: value for name, value in report.theta.items()}
        found = {"bits_per_parameter": coded.bits_per_parameter, "sparsity": coded.sparsity, "lambda": report.lam}
        pl_module.log_dict({f"rdo/{name}": value for name, value in (found | law).items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the compressed file, and leave the optimizer as it was."""
        assert self.handle is not None
        self.handle.remove()
        if self._save_to is None:
            return
        if isinstance(self.handle, TargetAttachment):
            self.handle.save(self._save_to)
        elif self.handle.constraint.shards.sharded or trainer.is_global_zero:
            save_compressed(pl_module, self._save_to, quantizer=self._quantizer, coder=self._coder)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning saves of this callback."""
        return {} if self.handle is None else {"rate": self.handle.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning before the training goes on."""
        self._saved = state_dict.get("rate")
