"""What reports want to know of a model's weights: the law that fits them, their rate, their histogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import rdo
from rdo.coders.base import Histogram
from rdo.quantizers import UniformQuantizer
from rdo_harness.architectures.base import Architecture
from rdo_harness.measure import exp_golomb_bytes

_BINS = 121
_REACH = 6.0


PAPER_STEP = 2.0**-8
"""The step of the paper's tables."""


class WeightObserver:
    """Fits one generalized Gaussian to all compressible weights of a model; it changes nothing."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._weights = [p for name, p in model.named_parameters() if architecture.compressible(name, p)]
        named = ((str(number), weight) for number, weight in enumerate(self._weights))
        self._constraint = rdo.RateConstraint(named, lam=0.0)

    def law(self) -> dict[str, float]:
        """``shape`` nu and ``scale`` sigma of the law, and the mean training rate in bits above its mode."""
        theta = dict(zip(self._constraint.entropy_model.theta_names, self._constraint.fit().tolist(), strict=True))
        return {**theta, "rate_bits": self._constraint.surrogate_rate()}

    @torch.no_grad()
    def histogram(self) -> dict[str, Any]:
        """Counts of the weights in 121 equal cells over +-6 root mean squares (``rms``), what lies beyond left out."""
        count = sum(weight.numel() for weight in self._weights)
        rms = (sum(float(weight.double().square().sum()) for weight in self._weights) / count) ** 0.5
        reach = _REACH * rms or 1.0
        counts = torch.zeros(_BINS, dtype=torch.float64)
        for weight in self._weights:
            counts += torch.histc(weight.float(), _BINS, -reach, reach).cpu()
        return {"rms": rms, "reach": reach, "weights": count, "counts": [int(n) for n in counts.tolist()]}


@torch.no_grad()
def rounded(model: nn.Module, architecture: Architecture) -> dict[str, Any]:
    """What rounding to the step 2^-8 makes of a model's compressible weights.

    Returns:
        ``layers``: name, number of weights and zeros of every tensor, in the model's order;
        ``exp_golomb_bits_per_parameter``: bits under Exp-Golomb of the orders k = 0 to 10, tables included.
    """
    quantizer = UniformQuantizer(step=PAPER_STEP)
    layers: list[dict[str, Any]] = []
    histograms = []
    for name, parameter in model.named_parameters():
        if architecture.compressible(name, parameter):
            symbols = quantizer.quantize(parameter.detach()).symbols.numpy()
            histograms.append(Histogram.of(symbols.reshape(-1)))
            layers.append({"name": name, "weights": symbols.size, "zeros": int((symbols == 0).sum())})
    count = sum(layer["weights"] for layer in layers)
    bits = [8 * size / count for size in exp_golomb_bytes(histograms).values()]
    return {"layers": layers, "exp_golomb_bits_per_parameter": bits}
