"""The rate that quantised weights would have."""

from __future__ import annotations

import pytest
import torch

from rdo.coded_rate import coded_rate
from rdo.quantizers import RelativeQuantizer, UniformQuantizer


@pytest.mark.parametrize("quantizer", [UniformQuantizer(step=0.25), RelativeQuantizer(ratio=1e-4, dead_zone=0.5)])
def test_bits_and_sparsity_are_those_of_the_symbols(quantizer: UniformQuantizer | RelativeQuantizer) -> None:
    """Steps of 1e-4 give symbols that have no bin of their own, too."""
    generator = torch.Generator().manual_seed(3)
    weights = [(name, torch.randn(size, generator=generator)) for name, size in (("a", (40, 30)), ("b", (7, 70)))]
    bits, zeros, total = 0.0, 0, 0
    for name, weight in weights:
        symbols = quantizer.quantize(weight, name).symbols
        values, counts = torch.unique(symbols, return_counts=True)
        bits -= float((counts * torch.log2(counts / symbols.numel())).sum())
        zeros, total = zeros + int((symbols == 0).sum()), total + symbols.numel()
        histogram = quantizer.histogram(weight, name)
        assert torch.equal(histogram.symbols.to(values.dtype), values)
        assert torch.equal(histogram.counts, counts)
    found = coded_rate(weights, quantizer)
    assert found.bits_per_parameter == pytest.approx(bits / total, rel=1e-6)
    assert (found.sparsity, found.parameters) == (zeros / total, total)


def test_nothing_has_no_rate() -> None:
    assert coded_rate([], UniformQuantizer()).bits_per_parameter == 0.0
