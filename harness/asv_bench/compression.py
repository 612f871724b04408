"""What training under a rate buys: a small GPT on the bytes of WikiText-2, at a fixed seed, one thread.

The training loop and the model are fixed here, so that a figure moves only when rdo does.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from asv_bench.arms import SHORT, Arm, figure, one_thread, ratio, skipped_where_missing

CONTEXT, BATCH, LEARNING_RATE = 128, 8, 3e-3
STEPS = 3 if SHORT else 250
LAMBDA = 0.3
RATIOS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
"""Quantisation steps, relative to the root mean square of a tensor."""
REFERENCE = 0.7
"""The one at which bits and metric are tracked."""
EVALUATED_BYTES = 1024 if SHORT else 16384

METHODS = ["BackSlash"] if SHORT else ["RTN", "BackSlash"]

Point = tuple[float, float]
"""Bits per parameter of the file, and bits per byte of held-out text."""


def text(split: str) -> Tensor:
    """A split of WikiText-2, uint8."""
    with skipped_where_missing():
        from rdo_harness.tasks.wikitext2 import load_bytes

        return load_bytes("wheels")[split]


def new_model(width: int = 128) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=width, n_layer=2, n_head=4, initializer_range=0.06)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).train()


def loss_of(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def trained(lam: float, steps: int, width: int = 128) -> nn.Module:
    """Train with AdamW, its rate warmed up and decayed, under the rate as a gradient (the paper's Algorithm 1)."""
    import rdo

    model, data = new_model(width), text("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    if lam:
        rdo.attach(optimizer, model, lam=lam, verbose=False)
    generator = torch.Generator().manual_seed(0)
    warmup = max(1, steps // 10)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))
        starts = torch.randint(len(data) - CONTEXT, (BATCH, 1), generator=generator)
        optimizer.zero_grad()
        loss_of(model, data[starts + torch.arange(CONTEXT + 1)].long()).backward()
        optimizer.step()
    return model.eval()


def coded(model: nn.Module, step: float) -> tuple[float, dict[str, Tensor]]:
    """Bits per parameter of the file on disk, everything in it counted, and the weights read back from it."""
    import rdo

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.rdo"
        rdo.save_compressed(model, path, quantizer=rdo.RelativeQuantizer(ratio=step), coder="rans")
        bits = 8 * path.stat().st_size / sum(parameter.numel() for parameter in model.parameters())
        return bits, {name: tensor.clone() for name, tensor in rdo.load_compressed(path).items()}


@torch.no_grad()
def bits_per_byte(model: nn.Module) -> float:
    held_out = text("test")[: EVALUATED_BYTES + 1].long()
    starts = torch.arange(0, EVALUATED_BYTES, CONTEXT)[:, None]
    windows = held_out[starts + torch.arange(CONTEXT + 1)]
    nats = sum(float(loss_of(model, part, "sum")) for part in windows.split(32))
    return nats / EVALUATED_BYTES / math.log(2)


def curve(lam: float) -> list[Point]:
    """The points of one trained model, over the quantisation steps."""
    model = trained(lam, STEPS)
    points = []
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in RATIOS:
        bits, weights = coded(model, step)
        model.load_state_dict(weights)
        points.append((bits, bits_per_byte(model)))
        model.load_state_dict(original)
    return points


def percent_of_bits(anchor: Sequence[Point], test: Sequence[Point]) -> float:
    """100 plus the BD-rate: the bits that the test curve needs for the same bits per byte, over those of the anchor."""
    import bjontegaard

    fronts = []
    for points in (anchor, test):
        front: list[Point] = []
        for bits, loss in sorted(points):
            if not front or loss < front[-1][1]:
                front.append((bits, loss))
        fronts.append(front)
    if min(map(len, fronts)) < 4:
        return math.nan
    axes = [part for front in fronts for part in ([b for b, _ in front], [-loss for _, loss in front])]
    return 100 + float(bjontegaard.bd_rate(*axes, method="pchip", require_matching_points=False, min_overlap=0.0))


class Training:
    """Two trainings of a minute or less, with and without the rate, each coded at seven steps."""

    version = 1
    timeout = 1800

    def setup_cache(self) -> dict[str, list[Point]]:
        one_thread()
        return {"RTN": curve(0.0), "BackSlash": curve(LAMBDA)}

    setup_cache.timeout = 1800

    @figure("% of the bits of RTN at equal bits per byte")
    def track_percent_of_rtn_bits(self, curves: dict[str, list[Point]]) -> float:
        return percent_of_bits(curves["RTN"], curves["BackSlash"])

    @figure("bits per parameter")
    def track_bits(self, curves: dict[str, list[Point]], method: str) -> float:
        return curves[method][RATIOS.index(REFERENCE)][0]

    @figure("bits per byte of text")
    def track_bits_per_byte(self, curves: dict[str, list[Point]], method: str) -> float:
        return curves[method][RATIOS.index(REFERENCE)][1]

    track_bits.params = track_bits_per_byte.params = (METHODS,)
    track_bits.param_names = track_bits_per_byte.param_names = ("method",)


class ShortTraining:
    """Bits per parameter of a few seconds of training: short enough for CI to compare two commits."""

    version = 1
    timeout = 300
    param_names = ("method",)
    params: ClassVar[Sequence[Any]] = (METHODS,)

    def setup(self, method: str) -> None:
        one_thread()
        text("train")

    @figure("bits per parameter", gate="bits")
    def track_bits(self, method: str) -> float:
        return coded(trained(3.0 if method == "BackSlash" else 0.0, STEPS if SHORT else 60, width=64), REFERENCE)[0]


class StepOverhead:
    """A training step with the rate term beside one without it, in turns; 100 is no overhead."""

    version = 1
    timeout = 300
    param_names = ("apply",)
    params: ClassVar[Sequence[Any]] = (["gradient"] if SHORT else ["gradient", "decoupled", "proximal", "RateAdamW"],)

    def setup(self, apply: str) -> None:
        one_thread()
        with skipped_where_missing():
            self.plain, self.with_rate = self._step(None), self._step(apply)
            self.with_rate()

    @figure("% of a plain step", gate="ratio")
    def track_percent(self, apply: str) -> float:
        return 100 * ratio(self.with_rate, self.plain)

    def _step(self, apply: str | None) -> Arm:
        import rdo

        model = new_model()
        if apply == "RateAdamW":
            from rdo.optim import RateAdamW

            named = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]
            optimizer: Any = RateAdamW(model.parameters(), lr=1e-5, rate=rdo.RateConstraint(named, lam=1e-3))
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            if apply is not None:
                rdo.attach(optimizer, model, lam=1e-3, apply=apply, verbose=False)
        windows = torch.randint(256, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))

        def step() -> None:
            optimizer.zero_grad()
            loss_of(model, windows).backward()
            optimizer.step()

        return step
