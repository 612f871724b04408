"""A training that ends at a size that was asked for: least loss subject to a coded size.

From some step on the loss sees the weights as they will be coded (:class:`rdo.coding_grid.CodingGrid`).
Two things follow the training so that this costs least:

- The steps of the tensors relative to one another. A tensor whose weights have the mean squared gradient h loses about
  h * step^2 / 24 a weight by rounding, and saves as many bits for each octave of its step as any other; so at a given
  rate the loss is least where h * step^2 is the same for all: steps in proportion to 1 / sqrt(h). (The mean squared
  gradient of a minibatch stands for the diagonal of the Fisher information, and that for the curvature.)
- The scale of all steps, which after every optimizer step is moved towards the one at which the weights, as they are
  then, take the bits that were asked for. While a rate term makes weights cheaper, steps become finer instead of files
  smaller.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rdo.allocation import nearest_below
from rdo.channel_sensitivity import measures_channels
from rdo.channels import channels_of
from rdo.checkpoint import CheckpointInfo
from rdo.checkpoint.writer import SMALLEST, Coder
from rdo.coding_grid import CodingGrid, blank_state
from rdo.compensation import Compensation
from rdo.constraint import RateConstraint
from rdo.errors import ConfigError
from rdo.hardening import HARDENING, Hardening, Softness
from rdo.measurement import Allocation, Measurement, Start
from rdo.model_file import ModelFile
from rdo.optimizer_state import OptimizerLike
from rdo.pressure import Pressure
from rdo.quantizers import AllocatedQuantizer
from rdo.recovery import Recovery
from rdo.sharding import has_replicas, is_main_process

DEFAULT_PRESSURE = 0.03
"""Length of the rate's gradient relative to that of the loss, at one bit a parameter."""
_COUNTED = 4
"""Optimizer steps between two counts of the symbols, by which the scale is moved."""
_GAIN, _STRIDE = 1.0, 0.2
"""Octaves that the scale moves then for a bit of error, and at most."""
_FIRST_BITS = 4.0
"""Entropy of the first trial file, at most."""
_LEARNED, _ROUGH = 0.2, 0.25
"""Share by which a file may correct the entropy with no other asked, and bits to which the weights have it then."""


class SizeTarget:
    """Keeps the coded size of some weights at a target while an optimizer trains them.

    Call :meth:`before_step` and :meth:`after_step` around each optimizer step, or let :func:`rdo.attach` do it. Between
    steps the model then holds rounded weights: what is evaluated is what will be decoded.

    Args:
        model: whose file is to have the size; its parameters are on one device in each process. Of a sharded model all
            processes must call every method together; each codes a share of the tensors, and rank 0 writes files.
        constraint: the weights that are coded, and the rate term that acts on them. A lambda that is a tensor follows
            the gradients (:class:`rdo.pressure.Pressure`).
        bits_per_parameter: ``8 * file_bytes / parameters``, the whole file over all stored parameters.
        size_mb: instead of that, the file's size in units of 10^6 bytes.
        pressure: of the rate term at one bit a parameter, see :class:`rdo.pressure.Pressure`; 0 for no rate term.
        allocation: steps of the tensors relative to one another: ``"sensitivity"`` as above, ``"scale"`` as the root
            mean squares of their weights, ``"balanced"`` the geometric mean of both, ``"equal"`` one step for all.
        compensated: when rounding begins, let the columns of each matrix make good for the rounding of those before
            (:class:`rdo.compensation.Compensation`), by the inputs of the steps before: float32 [in, in] for each
            matrix. Of a settled model only if its weights lack :data:`rdo.measurement.ROOM`. Not for sharded ones.
        start: when the loss begins to see rounded weights (:class:`rdo.measurement.Measurement`): after so many steps;
            ``"decayed"``, when the learning rate has fallen to 0.4 of its peak, and 20 steps more; or ``"settled"``,
            after 20 steps if the model trains on at what it did before, else as ``"decayed"``.
        hardening, softness: where the first rounding is not compensated, how many optimizer steps weights take to
            harden from then on, and how they are soft (:class:`rdo.hardening.Hardening`). Until then the model is not
            yet what would be decoded. 0 rounds at once.
        recovery: share of the peak learning rate from which on zeros are frozen, 0 for never: see :mod:`rdo.recovery`.
        channels: whether rows or columns of a matrix have steps of their own, relative to the tensor's and by their own
            mean squared gradient, where that saves bits. By default if ``context`` is among the coders: one table for a
            tensor cannot tell them apart. Not for sharded parameters.
        coder, raw_dtype: as for ``save_compressed``; what the size is counted with. A GPU decodes ``"rans"`` itself.

    Raises:
        ConfigError: not exactly one size was given, or one that cannot be had; or an option is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        constraint: RateConstraint,
        *,
        bits_per_parameter: float | None = None,
        size_mb: float | None = None,
        pressure: float = DEFAULT_PRESSURE,
        allocation: Allocation = "sensitivity",
        compensated: bool = True,
        start: Start = "settled",
        hardening: int = HARDENING,
        softness: Softness = "blend",
        recovery: float = 0.0,
        channels: bool | None = None,
        coder: Coder | Sequence[Coder] = SMALLEST,
        raw_dtype: torch.dtype | None = None,
    ) -> None:
        if constraint.shards.sharded and compensated:
            raise ConfigError(
                "the first rounding of sharded parameters cannot be compensated, which needs whole matrices; give "
                'target_options={"compensated": False}'
            )
        self._constraint, self._shards = constraint, constraint.shards
        self._file = ModelFile(model, constraint.names, coder=coder, raw_dtype=raw_dtype)
        self.parameters: int = self._file.parameters
        self.budget_bytes: float = self._file.budget_bytes(bits_per_parameter, size_mb)
        self._pressure = Pressure(constraint, pressure) if constraint.lam_tensor is not None else None
        weights = dict(zip(constraint.names, constraint.parameters, strict=True))
        by_row = measures_channels(channels, allocation, coder, sharded=self._shards.sharded)
        self.measurement = Measurement(
            model, weights, self._shards, start=start, allocation=allocation, inputs=compensated, channels=by_row
        )
        self._hardening, self._recovery = Hardening(hardening, softness), Recovery(recovery)
        self.step, self.goal_bits = 0, 0.0
        self.grid: CodingGrid | None = None
        self.bits_per_parameter: float = 8 * self.budget_bytes / self.parameters
        self._entropy = torch.zeros((), dtype=torch.float64, device=constraint.parameters[0].device)

    @property
    def entropy_bits(self) -> float:
        """Order-0 entropy of the weights when their symbols were last counted, in bits per weight."""
        return float(self._entropy)

    @torch.no_grad()
    def before_step(self, optimizer: OptimizerLike) -> None:
        """Give the optimizer the unrounded weights, and the rate term its lambda. Call after unscaling and clipping."""
        self._recovery.before_step(optimizer, self.grid if self._hardening.hardness == 1.0 else None)
        if self.grid is not None:
            self.grid.restore()
            self._hardening.before_step(optimizer)
            if self.grid.moments is not None:
                self._constraint.law.follow(self.grid.moments)
        else:
            self.measurement.before_step(self.step, optimizer)
        if self._pressure is not None:
            self._pressure.before_step(self.step, math.inf if self._recovery.begun else self._sought_bits())

    @torch.no_grad()
    def after_step(self) -> None:
        """Choose steps once gradients are known, follow the size from there on, and round the weights."""
        self.step += 1
        if self.grid is None:
            if not self.measurement.after_step(self.step):
                return
            relative = self.measurement.relative_steps()
            channels = self.measurement.channels.steps()
            self.grid = CodingGrid(self._constraint.names, self._constraint.parameters, relative, channels=channels)
            self.measurement.channels.clear()
            fit, recorder = self.grid.fit, self.measurement.take_recorder()
            if recorder is not None:
                if has_replicas():
                    recorder.add_replicas()
                fit = Compensation(self.grid, recorder).fit
                self._hardening.end()
            self._begin(fit)
        else:
            self._recovery.after_step(self.grid)
            if self.step & (self.step - 1) == 0:
                self._learn_goal()
            if self.step % _COUNTED == 0:
                self._entropy = self.grid.entropy_bits()
                self.grid.move(((self._entropy - self.goal_bits) * _GAIN).clamp(-_STRIDE, _STRIDE))
        self._hardening.round(self.grid)

    def save(self, path: str | os.PathLike[str]) -> CheckpointInfo:
        """:meth:`land`, and write the compressed model; its parameters then hold what was written.

        Of several processes all call it, and rank 0 writes. It raises what :meth:`land` does.
        """
        with self._unrounded():
            self._land()
            # Replicas have all of the model, and write the same.
            writes = self._shards.sharded or is_main_process()
            return self._file.write(self.quantizer(), path if writes else None)

    def land(self) -> None:
        """Move the steps a little such that the file has the size asked for, or is up to 0.05 % smaller.

        The parameters are rounded to these steps. Training can go on.

        Raises:
            ConfigError: the training has not yet come to the choice of steps, or no steps give the size.
            RdoError: as :func:`~rdo.save_compressed`.
        """
        with self._unrounded():
            self._land()

    def _land(self) -> None:
        """:meth:`land`, given the unrounded weights, which the parameters hold."""
        grid = self._ready()

        def size_at(octaves: float) -> int:
            return self._file.write(grid.quantizer(self.bits_per_parameter, octaves)).file_bytes

        slope = self.budget_bytes / max(self.goal_bits, 0.5)
        octaves, size = nearest_below(size_at, self.budget_bytes, -8.0, 8.0, slope)
        if size > self.budget_bytes:
            raise ConfigError(f"no steps give a file of {self.budget_bytes:,.0f} bytes; the least is {size:,}")
        grid.move(octaves)
        self._entropy = grid.entropy_bits()

    def quantizer(self) -> AllocatedQuantizer:
        """The steps that the parameters are rounded to, for ``save_compressed``: it keeps their values.

        Raises:
            ConfigError: the training has not yet come to the choice of steps.
        """
        return self._ready().quantizer(self.bits_per_parameter)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, unrounded weights included: numbers, lists, and tensors by name."""
        names, parameters = self._constraint.names, self._constraint.parameters
        return {
            "step": self.step,
            "budget_bytes": self.budget_bytes,
            "goal": self.goal_bits,
            "entropy": float(self._entropy),
            "measurement": self.measurement.state_dict(),
            "hardening": self._hardening.state_dict(),
            "recovery": self._recovery.state_dict(),
            "pressure": None if self._pressure is None else self._pressure.state_dict(),
            "grid": blank_state(names, parameters) if self.grid is None else self.grid.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume bit-exactly from :meth:`state_dict`; the model's parameters are loaded by the caller, as saved.

        Raises:
            ConfigError: the state is that of another target or other weights.
        """
        if state["budget_bytes"] != self.budget_bytes:
            raise ConfigError(
                f"cannot resume: the size was {state['budget_bytes']:,.0f} bytes when the state was saved and is "
                f"{self.budget_bytes:,.0f} now"
            )
        self.step, self.goal_bits = int(state["step"]), float(state["goal"])
        self.measurement.load_state_dict(state["measurement"])
        self._hardening.load_state_dict(state["hardening"])
        self._recovery.load_state_dict(state["recovery"])
        self._entropy.fill_(state["entropy"])
        if self._pressure is not None:
            self._pressure.load_state_dict(state["pressure"])
        saved = state["grid"]
        if saved is not None and saved["relative"] is not None:
            weights = self._constraint.names, self._constraint.parameters
            channels = channels_of(saved["channels"])
            self.grid = CodingGrid(*weights, saved["relative"], saved["finest"], channels)
            self.grid.load_masters(saved["octaves"], saved["masters"])

    def _ready(self) -> CodingGrid:
        if self.grid is None:
            raise ConfigError(
                f"weights are not rounded yet after {self.step} steps: that begins {self.measurement.when}, or where "
                "`start` says. What is trained is not lost: rdo.rounding.round_to_size rounds it as it is"
            )
        return self.grid

    def _begin(self, fit: Callable[..., None]) -> None:
        """Choose the first steps, with what scales them such that the weights have so many bits."""
        # Of a small file much is header: more bits than the weights have could not be fitted.
        self.goal_bits = min(self.bits_per_parameter, _FIRST_BITS)
        for _ in range(2):
            fit(self.goal_bits, _ROUGH)
            before = self.goal_bits
            self._learn_goal()
            if abs(self.goal_bits - before) <= _LEARNED * before:
                break
        fit(self.goal_bits)

    def _sought_bits(self) -> float:
        """What the pressure goes by."""
        return self.bits_per_parameter

    def _learn_goal(self) -> None:
        """Learn from a file what entropy the weights must have for the size: coders and headers have their cost."""
        grid = self._ready()
        quantizer, entropy = grid.quantizer(self.bits_per_parameter), float(grid.entropy_bits())
        self.goal_bits = self._file.goal_bits(quantizer, self.budget_bytes, entropy, grid.count)

    @contextmanager
    def _unrounded(self) -> Iterator[None]:
        """Give the parameters their unrounded weights for a while."""
        grid = self._ready()
        grid.restore()
        try:
            yield
        finally:
            grid.round()
