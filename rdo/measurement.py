"""What a training shows of its weights in the last steps before they are rounded for the first time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from rdo.calibration import InputRecorder, steps_by_sensitivity
from rdo.channel_sensitivity import ChannelSensitivity
from rdo.control import Decayed, largest_rate
from rdo.errors import ConfigError
from rdo.optimizer_state import OptimizerLike
from rdo.pressure import squares_of
from rdo.sharding import Shards
from rdo.sketch import CountSketch

MEASURED_STEPS = 20
"""Optimizer steps over which squared gradients, and at least so many of inputs, are averaged before rounding begins."""
DECAYED, NEAR_DECAYED = 0.4, 0.6
"""Shares of its peak to which the learning rate falls before rounding begins late, and before inputs are recorded for
that: the 20 steps just before may have few, where texts are short."""
SETTLED = 0.15
"""What the steps' relations change at most from the first half of these to the second if the model knows its task:
octaves, the root mean square over all weights, less what even and odd ones differ by, which is noise. A small Llama
that trains on has 0.02, SmolLM2-135M with four windows a step 0.09 (0.19 with the noise), MiniLM with a new classifier
0.3."""
AGREEMENT = 1.0
"""Squared length of the sum of the gradients of these steps, over the sum of their squared lengths, below which a model
moves as far as it wants to: 1 if each points in a direction of its own, less if a step takes back what the one before
has done, the number of steps if all agree. A small GPT that trains on has 0.6, MiniLM with a new classifier 2, and 5 as
long as the learning rate is almost zero."""
ROOM = 0.25
"""How far weights must be able to move, relative to their size, to find their own way out of a rounding: what they
moved in ten steps, times a tenth of the steps that are left. With less, the rounding is compensated. A small GPT and a
small Llama have 0.07 to 0.1 in 80 steps at a learning rate of 3e-4, and 0.41 to 0.57 in 300 at 1e-3."""
_STEPS_LEFT = 200
"""At most, and where the learning rate does not fall."""
_LEVEL = 200
"""Optimizer steps at one learning rate after which it is said what rounding waits for."""
Allocation = Literal["sensitivity", "balanced", "scale", "equal"]
Start: TypeAlias = int | Literal["settled", "decayed"]


class Measurement:
    """Decides when rounding begins, and measures gradients and inputs just before.

    Args:
        weights: parameters by name.
        shards: of these.
        start: optimizer steps before rounding; ``"decayed"`` for those until the learning rate has fallen to 0.4 of its
            peak, and 20 more; ``"settled"`` for 20 if these show that the sensitivities of the tensors hardly move
            against one another, as those of a model do that trains on, and as with ``"decayed"`` if not; while the
            learning rate rises and all gradients still point the same way, another 20 decide.
        allocation: what the steps of the tensors go by, see :class:`rdo.target.SizeTarget`.
        inputs: whether to record the inputs of matrices; they are dropped if a settled model is rounded early and its
            weights have :data:`ROOM`.
        channels: whether to measure rows and columns too; not for sharded weights.

    Raises:
        ConfigError: another start or allocation.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        shards: Shards,
        *,
        start: Start,
        allocation: Allocation = "sensitivity",
        inputs: bool,
        channels: bool = False,
    ) -> None:
        if not (isinstance(start, int) and start >= 0) and start not in get_args(get_args(Start)[1]):
            raise ConfigError(f"start must be a number of optimizer steps, 'settled' or 'decayed'; got {start!r}")
        if allocation not in get_args(Allocation):
            raise ConfigError(f"allocation must be one of {', '.join(get_args(Allocation))}; got {allocation!r}")
        self._allocation = allocation
        self._model, self._weights, self._shards, self._wanted = model, dict(weights), shards, inputs
        self.start = max(start, MEASURED_STEPS) if isinstance(start, int) else None
        self._comparing = start == "settled"
        self._decayed = Decayed(DECAYED)
        self.recorder: InputRecorder | None = None
        first = next(iter(weights.values()))
        # Of the first and second half of the steps, and of even and odd ones.
        self._squares = torch.zeros(2, 2, len(weights), dtype=torch.float64, device=first.device)
        self._half = 0
        self._sketch = CountSketch(first.device)
        self._direction = self._squares.new_zeros(CountSketch.length)
        self._place = self._squares.new_zeros(len(weights), CountSketch.length)
        self._falling = 0
        self._rate = self._earlier_rate = 0.0
        self._level = 0
        self.channels = ChannelSensitivity(weights if channels else {})

    @property
    def when(self) -> str:
        """When rounding begins, in words."""
        if self.start is not None:
            return f"after {self.start} optimizer steps"
        return f"once the learning rate has fallen to {DECAYED} of its peak"

    def before_step(self, step: int, optimizer: OptimizerLike) -> None:
        """Look at the learning rate and the gradients."""
        rate = largest_rate(optimizer)
        self._rate, self._level = rate, self._level + 1 if rate == self._rate else 0
        if self._level == _LEVEL and self.start is None and not self._comparing:
            warnings.warn(
                f"the learning rate has been {rate:g} for {_LEVEL} steps, and weights are rounded to the size only "
                f"{self.when}: without a schedule give some steps fewer than there will be in all, such as "
                f'target_options={{"start": {step + _LEVEL}}}',
                stacklevel=2,
            )
        if self._decayed(optimizer) and self.start is None:
            self._forget(comparing=False)
            self.start = step + MEASURED_STEPS
        if self._comparing:
            self._falling = self._falling + 1 if self._rate < self._decayed.peak else 0
            self._direction += self._sketches(self._shards.known_gradients()).sum(0)
        if self._comparing or self._near(step):
            self._squares[self._half, step % 2] += self._mean_squares(self._shards.known_gradients())
            self.channels.add()

    def _compare(self, step: int) -> None:
        """Compare the sensitivities of the two halves of the first steps, once there are both."""
        if self._half == 0:
            self._half, self._earlier_rate = 1, self._rate
            if self.recorder is not None:  # only then is it asked how far weights have moved since
                self._place = self._sketches(self._shards.parts())
            return
        counts = torch.tensor([weight.numel() for weight in self._weights.values()], dtype=torch.float64)
        share = counts / counts.sum()
        drift = _spread(self._squares.sum(1), share) - _spread(self._squares.sum(0), share)
        settled = drift < SETTLED**2
        squares = float((counts * self._squares.sum((0, 1)).cpu()).sum())
        # While the learning rate rises, a model with a new task may just not have moved yet.
        moved = 0.0 < self._rate <= self._earlier_rate or float(self._direction.square().sum()) < AGREEMENT * squares
        if settled and moved:
            self.start, self._comparing = step, False
            if self.recorder is not None and self._room() >= ROOM:
                self._drop_inputs()
        else:
            self._forget(comparing=settled)
            self._drop_inputs()

    def _forget(self, *, comparing: bool) -> None:
        """Begin to measure again, to compare once more or when rounding is near."""
        self._comparing, self._half = comparing, 0
        self._squares.zero_()
        self._direction.zero_()
        self.channels.clear()

    def _drop_inputs(self) -> None:
        if self.recorder is not None:
            self.recorder.stop()
            self.recorder = None

    def _room(self) -> float:
        """How far the weights will move, relative to their size, at the pace of the last ten steps."""
        counts = torch.tensor([weight.numel() for weight in self._weights.values()], dtype=torch.float64)
        moved = (self._sketches(self._shards.parts()) - self._place).square().sum(1).cpu() / counts
        sizes = self._mean_squares(self._shards.parts()).cpu()
        pace = float((counts * (moved / sizes.clamp(min=1e-300)).sqrt()).sum() / counts.sum())
        left = float(_STEPS_LEFT)
        if self._falling:  # in a straight line, from its peak to zero
            left = min(left, self._falling * self._rate / (self._decayed.peak - self._rate))
        return pace * left / (MEASURED_STEPS // 2)

    def after_step(self, step: int) -> bool:
        """Whether weights are to be rounded now; records the inputs of the steps to come if that may be near."""
        if self._comparing and step % (MEASURED_STEPS // 2) == 0:
            self._compare(step)
        if self.start is not None and step >= self.start:
            return True
        falls = self.start is None and 0.0 < self._rate <= NEAR_DECAYED * self._decayed.peak
        if self._wanted and self.recorder is None and (self._comparing or falls or self._near(step)):
            self.recorder = InputRecorder(self._model, self._weights)
        return False

    def take_recorder(self) -> InputRecorder | None:
        """What has recorded inputs, if it saw most: compiled models do not call it, and others may have no matrices."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None and not recorder.seen:
            recorder.stop()
            return None
        return recorder

    def relative_steps(self) -> list[float]:
        """Steps of the tensors relative to one another."""
        if self._allocation == "equal":
            return [1.0] * len(self._weights)
        gradients = self._squares.sum((0, 1)).tolist()
        if self._allocation == "sensitivity":
            return steps_by_sensitivity(gradients)
        squares = [max(square, 1e-300) for square in self._mean_squares(self._shards.parts()).tolist()]
        if self._allocation == "scale":
            return steps_by_sensitivity([1.0 / square for square in squares])
        # The geometric mean of the steps by both.
        return steps_by_sensitivity([math.sqrt(g / square) for g, square in zip(gradients, squares, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and what was recorded of inputs."""
        return {
            "start": self.start,
            "comparing": self._comparing,
            "half": self._half,
            "peak": self._decayed.peak,
            "rates": [self._earlier_rate, self._rate],
            "direction": self._direction.tolist(),
            "place": self._place.tolist() if self._half else None,
            "falling": self._falling,
            "squares": self._squares.tolist(),
            "channels": self.channels.state_dict(),
            "inputs": None if self.recorder is None else self.recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.start, self._decayed.peak = state["start"], float(state["peak"])
        self._comparing = bool(state["comparing"])
        self._half = int(state["half"])
        self._squares.copy_(torch.tensor(state["squares"], dtype=torch.float64))
        self.channels.load_state_dict(state["channels"])
        self._earlier_rate, self._rate = map(float, state["rates"])
        self._direction.copy_(torch.tensor(state["direction"], dtype=torch.float64))
        if state["place"] is not None:
            self._place.copy_(torch.tensor(state["place"], dtype=torch.float64))
        self._falling = int(state["falling"])
        if state["inputs"] is not None:
            self.recorder = InputRecorder(self._model, self._weights)
            self.recorder.load_state_dict(state["inputs"])

    def _near(self, step: int) -> bool:
        return self.start is not None and step >= self.start - MEASURED_STEPS

    def _sketches(self, parts: Sequence[Tensor | None]) -> Tensor:
        """The count sketch of each tensor, float64 [T, 256], by the same signs in every step."""
        sums = self._squares.new_zeros(len(parts), CountSketch.length)
        for number, part in enumerate(parts):
            if part is not None and part.numel():
                # Elements of a tensor that processes share out have signs of their own in each.
                seed = number + (len(parts) * torch.distributed.get_rank() if self._shards.sharded else 0)
                sums[number] = self._sketch(part, seed)
        return self._shards.sums(sums)

    def _mean_squares(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Mean of the squares of whole tensors from what each process holds of them, float64 [T]; 0 without one."""
        counts = [weight.numel() for weight in self._weights.values()]
        sums = self._shards.sums(squares_of(parts, self._squares))
        return sums / torch.tensor(counts, dtype=torch.float64, device=sums.device)


def _spread(squares: Tensor, share: Tensor) -> float:
    """Mean square over all weights of the octaves by which the steps of two measurements, [2, T], differ."""
    one, other = (torch.tensor(steps_by_sensitivity(each.tolist()), dtype=torch.float64).log2() for each in squares)
    change = one - other
    change -= (share * change).sum()
    return float((share * change.square()).sum())
