"""Fits a law to given weights, and compares the bits that it predicts with the empirical entropy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import rdo_kernels
from rdo.coders.base import Histogram
from rdo.entropy import EntropyModel
from rdo.errors import ConfigError
from rdo.quantizers import Quantizer


@dataclass(frozen=True)
class Fit:
    """A law fitted to some weights, and the rate at one operating point.

    Attributes:
        theta: the law's parameters by name.
        sigma: root mean square of the weights.
        step: quantisation step, the mean one where rows differ.
        sparsity: share of weights that are quantised to zero.
        law_bits: mean code length of the weights under the law, in bits per weight.
        entropy_bits: order-0 entropy of the symbols, in bits per weight: what the best static table reaches.
    """

    name: str
    weights: int
    theta: dict[str, float]
    sigma: float
    step: float
    sparsity: float
    law_bits: float
    entropy_bits: float


def fit_weights(tensors: Iterable[tuple[str, Tensor]], model: EntropyModel, quantizer: Quantizer) -> list[Fit]:
    """Fit ``model`` to each tensor, and last to all together under the name ``"all"``. One tensor is held at a time.

    The code length of all weights together is that of one law, a single step (the mean) being assumed per tensor.

    Raises:
        ConfigError: there is no tensor.
        NonFiniteWeightsError, SymbolOverflowError: a tensor cannot be quantised.
    """
    fits: list[Fit] = []
    moments: list[Tensor] = []
    symbols: list[tuple[Histogram, float]] = []
    for name, tensor in tensors:
        quantized = quantizer.quantize(tensor, name)
        step = float(quantized.steps.to(torch.float64).mean())
        histogram = Histogram.of(quantized.symbols.cpu().reshape(-1).numpy())
        moments.append(rdo_kernels.moments([tensor])[0])
        symbols.append((histogram, step))
        fits.append(_fit(name, moments[-1], symbols[-1:], model))
    if not fits:
        raise ConfigError("no floating-point matrices to fit a law to")
    rows = torch.stack(moments)
    pooled = torch.cat([rows[:, :4].sum(0), rows[:, 4].amax(0, keepdim=True)])
    return [*fits, _fit("all", pooled, symbols, model)]


def _fit(name: str, moments: Tensor, symbols: list[tuple[Histogram, float]], model: EntropyModel) -> Fit:
    theta = model.fit(moments)
    count = sum(histogram.count for histogram, _ in symbols)
    law_bits = 0.0
    for histogram, step in symbols:
        lengths = model.interval_bits(torch.from_numpy(histogram.values), step, theta)
        law_bits += float((lengths * torch.from_numpy(histogram.counts)).sum())
    values, position = np.unique(np.concatenate([histogram.values for histogram, _ in symbols]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, position, np.concatenate([histogram.counts for histogram, _ in symbols]))
    return Fit(
        name=name,
        weights=count,
        theta=dict(zip(model.theta_names, theta.tolist(), strict=True)),
        sigma=float((moments[2] / moments[0]).sqrt()),
        step=sum(step * histogram.count for histogram, step in symbols) / count,
        sparsity=float(counts[values == 0].sum() / count),
        law_bits=law_bits / count,
        entropy_bits=Histogram(values, counts).entropy_bits() / count,
    )
