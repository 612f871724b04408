"""Training at the coding step: between optimizer steps the parameters hold what a decoder will give back.

The loss and its gradient then are those of the coded weights, and the optimizer moves unrounded copies of them, the
masters: the straight-through estimator (Bengio, Leonard and Courville, arXiv 1308.3432), without a change to the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import rdo_kernels
from rdo.channels import ChannelSteps
from rdo.errors import ConfigError
from rdo.quantizers import AllocatedQuantizer
from rdo.sharding import Shards, part_as_of, placed_as

_FINEST = 512
"""Steps from zero to the largest weight of a tensor, at most; symbols are counted up to twice that."""


class CodingGrid:
    """Parameters with quantisation steps: a scale for all, times what each tensor has relative to the others.

    Within a tensor rows or columns may have steps of their own, which do not change.

    No step is finer than 1/512 of the largest weight that its tensor has when the grid is made: a tensor that the loss
    is far more sensitive to than to the others would take bits from them for a precision that nobody needs.

    Args:
        names: of the parameters, as a state dict has them.
        parameters: floating-point tensors of any size, on one device in each process; they may be sharded. Then all
            processes must make the grid, and call its methods, together.
        relative: the steps of the tensors for scale 1, positive.
        finest: the least steps, of a grid that is made again; by default those above.
        channels: by name, the steps of the rows or columns of a tensor relative to the tensor's (``base`` is not looked
            at). Not for sharded parameters.

    Attributes:
        moments: :func:`rdo_kernels.moments` of the masters that :meth:`round` kept last, float64 [T, 5].
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        relative: Sequence[float],
        finest: Sequence[float] | None = None,
        channels: Mapping[str, ChannelSteps] | None = None,
    ) -> None:
        self.names, self.parameters = list(names), list(parameters)
        self.channels = dict(channels or {})
        self.count = sum(parameter.numel() for parameter in parameters)
        self._shards = Shards(self.names, self.parameters)
        self._masters: list[Tensor] = []
        self.moments: Tensor | None = None
        self._rounded = False
        device = self._shards.parts()[0].device
        if finest is None:
            finest = [largest / _FINEST for largest in self._largest().tolist()]
        self._finest = torch.tensor(list(finest), dtype=torch.float64, device=device)
        self._relative = torch.tensor(list(relative), dtype=torch.float64, device=device)
        self._octaves = torch.zeros((), dtype=torch.float64, device=device)
        factors = [
            replace(self.channels[name], base=1.0).tensor() if name in self.channels else torch.ones(())
            for name in self.names
        ]
        self._sizes = [factor.shape for factor in factors]
        counts = torch.tensor([factor.numel() for factor in factors])
        self._factors = torch.cat([factor.reshape(-1) for factor in factors]).to(device)
        self._tensor_of = torch.arange(len(factors)).repeat_interleave(counts).to(device)
        self._each = torch.empty_like(self._factors)

    @property
    def steps(self) -> Tensor:
        """The step of each tensor, float32 [T]; those of its rows or columns are told relative to it."""
        return self.steps_after(0.0)

    def all_steps(self) -> list[Tensor]:
        """The steps as kernels take them, in one piece of memory until the next call: float32 [], [R] or [1, C]."""
        torch.mul(self.steps[self._tensor_of], self._factors, out=self._each)
        pieces = torch.split(self._each, [size.numel() for size in self._sizes])
        return [piece.view(size) for piece, size in zip(pieces, self._sizes, strict=True)]

    @property
    def masters(self) -> list[Tensor]:
        """The unrounded weights that this process holds, in the order of the parameters."""
        return self._masters if self._rounded else self._shards.parts()

    @torch.no_grad()
    def round(self) -> None:
        """Keep the weights as masters and round the parameters."""
        parts = [part.detach() for part in self._shards.parts()]
        self.restore()
        if not self._masters:
            self._masters = [torch.empty_like(part) for part in parts]
        self.moments = rdo_kernels.keep_and_round(parts, self._masters, self.all_steps())
        self._rounded = True

    @torch.no_grad()
    def soften(self, share: float) -> None:
        """Move the rounded parameters this share of the way back to the masters."""
        torch._foreach_lerp_(self._shards.parts(), self._masters, share)

    @torch.no_grad()
    def add_noise(self, seed: int) -> None:
        """Give the parameters, in the place of rounded values, the masters and uniform noise as wide as a step.

        The noise is that of the seed, the same on all processes that hold the same part of the weights.
        """
        parts = self._shards.parts()
        generator = torch.Generator(parts[0].device).manual_seed(seed)
        for part, master, step in zip(parts, self._masters, self.all_steps(), strict=True):
            each = step.reshape(-1, *(1,) * (part.ndim - 1)) if step.ndim == 1 else step
            noise = torch.rand(part.shape, generator=generator, device=part.device) - 0.5
            part.copy_(master + (each * noise).to(part.dtype))

    @torch.no_grad()
    def freeze_zeros(self) -> None:
        """Round the parameters, and make those masters zero that are rounded to it, for :meth:`keep_zeros`."""
        self.round()
        for part, master in zip(self._shards.parts(), self._masters, strict=True):
            master.masked_fill_(part == 0, 0.0)

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Take back what has moved weights since :meth:`restore` whose masters were zero."""
        for part, master in zip(self._shards.parts(), self._masters, strict=True):
            part.masked_fill_(master == 0, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters their unrounded weights back, for the optimizer to move."""
        if self._rounded:
            torch._foreach_copy_(self._shards.parts(), self._masters)
            self._rounded = False

    @torch.no_grad()
    def entropy_bits(self) -> Tensor:
        """Order-0 entropy of the masters at the steps, tensor by tensor, in bits per weight; float64 []."""
        counts = rdo_kernels.quantize(self.masters, self.all_steps(), dtype=torch.int16).counts
        assert counts is not None
        return bits_of_counts(self._shards.sums(counts)) / self.count

    def fit(self, bits: float, close: float = 1e-3) -> None:
        """Scale all steps such that the masters have this entropy, or up to ``close`` bits less; waits for the device.

        Where no scale comes so near, as with few weights, it is the finest with fewer, to as many octaves.

        Raises:
            ConfigError: the least steps give fewer bits.
        """
        least = float((self._finest / self._relative).log2().amin())
        low = least
        high = max(math.log2(max(float((self._largest() / self._relative).max()), 1e-300)) + 2.0, low)  # all are zero
        octaves, slope = min(max(float(self._octaves), low), high), -1.0
        before = octaves, math.nan
        for trial in itertools.count():
            found = self._entropy_at(octaves)
            if 0.0 <= bits - found <= close:
                return
            if found > bits:
                low = octaves
            elif octaves > least:
                high = octaves
            else:
                raise ConfigError(f"no quantisation steps give the weights an entropy of {bits:g} bits; ask for less")
            if high - low <= close:
                break
            if (found - before[1]) * (octaves - before[0]) < 0.0:
                slope = (found - before[1]) / (octaves - before[0])
            before = octaves, found
            # -1 at high rates; it aims into the middle of what is close, and halves the bracket where that goes astray.
            octaves += (bits - close / 2 - found) / min(max(slope, -1.0), -0.1)
            if octaves <= least:
                octaves = least
            elif not low < octaves < high or trial % 3 == 2:
                octaves = (low + high) / 2
        self._octaves.fill_(high)

    def _largest(self) -> Tensor:
        """The largest magnitude among the masters of each tensor, float64 [T]; a process may hold none of them."""
        parts = [part.detach().abs() for part in self.masters]
        return self._shards.maxima(
            torch.stack([(part.amax() if part.numel() else part.new_zeros(())).to(torch.float64) for part in parts])
        )

    def _entropy_at(self, octaves: float) -> float:
        self._octaves.fill_(octaves)
        return float(self.entropy_bits())

    def move(self, octaves: Tensor | float) -> None:
        """Multiply all steps by ``2^octaves``; takes effect when the parameters are rounded next.

        The scale stops where all steps are the least: beyond, every move back would be without effect for a while.
        """
        self._octaves += octaves
        self._octaves.clamp_(min=(self._finest / self._relative).log2().amin())

    def steps_after(self, octaves: float) -> Tensor:
        """The steps that :meth:`move` by so many octaves would lead to, float32 [T]."""
        return torch.maximum(self._relative * torch.exp2(self._octaves + octaves), self._finest).to(torch.float32)

    def quantizer(self, bits: float, octaves: float = 0.0) -> AllocatedQuantizer:
        """What rounds the masters as :meth:`round` does, or would do after :meth:`move` by so many octaves."""
        steps = dict(zip(self.names, self.steps_after(octaves).tolist(), strict=True))
        channels = {name: replace(self.channels[name], base=steps.pop(name)) for name in self.channels}
        return AllocatedQuantizer(steps, bits, "sensitivity", channels=channels)

    def state_dict(self) -> dict[str, object]:
        """Steps, the scale, and the masters by name (tensors) while the parameters are rounded.

        Masters of sharded parameters are DTensors.
        """
        kept = zip(self.names, self.parameters, self._masters, strict=True) if self._rounded else ()
        masters = {name: placed_as(parameter, master) for name, parameter, master in kept}
        return {
            "relative": self._relative.tolist(),
            "channels": {name: [own.axis, own.exponents.tolist()] for name, own in self.channels.items()},
            "finest": self._finest.tolist(),
            "octaves": float(self._octaves),
            "masters": masters,
        }

    @torch.no_grad()
    def load_masters(self, octaves: float, masters: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`, given the grid was built with its relative and least steps.

        Masters of sharded parameters may be DTensors, or whole.

        Raises:
            ConfigError: the masters are not those of these parameters.
        """
        if set(masters) not in (set(), set(self.names)):
            raise ConfigError("cannot resume: the state has other weights than those that the size target covers")
        self._octaves.fill_(octaves)
        if masters:
            held = zip(self.names, self.parameters, self._shards.parts(), strict=True)
            self._masters = [
                part_as_of(masters[name], parameter).to(part).reshape(part.shape).clone()
                for name, parameter, part in held
            ]
            self.moments, self._rounded = None, True


def blank_state(names: Sequence[str], parameters: Sequence[Tensor]) -> dict[str, object] | None:
    """The state of a grid that is not made yet; None unless its parameters are sharded.

    A distributed checkpoint is loaded into what is there already.
    """
    shards = Shards(list(names), list(parameters))
    if not shards.sharded:
        return None
    held = zip(names, parameters, shards.parts(), strict=True)
    masters = {name: placed_as(parameter, part.detach().clone()) for name, parameter, part in held}
    return {"relative": None, "finest": None, "channels": {}, "octaves": 0.0, "masters": masters}


def bits_of_counts(counts: Tensor) -> Tensor:
    """Bits of the symbols counted in the rows of int64 [T, K], each row under its own ideal code; float64 []."""
    values = counts.to(torch.float64)
    totals = values.sum(1, keepdim=True)
    return torch.xlogy(values, totals / values.clamp(min=1.0)).sum() / math.log(2)
