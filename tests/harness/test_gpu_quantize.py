from __future__ import annotations

import torch

from rdo_harness.gpu import quantize


def test_what_is_timed_and_its_reference_do_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) for size in (1, 97, 70_001)]
    keep, quantise, restore = quantize.operations(weights)
    again = quantize.operations(weights)[0]  # on tensors of its own
    kept, sums = (torch.stack([arm(), arm()]) for arm in (keep.ours, again.reference))
    torch.testing.assert_close(kept[..., 1:3], sums, rtol=1e-6, atol=0)
    assert (kept[0, 1:, 2] != kept[1, 1:, 2]).all(), "the second time they are sums of what was rounded the first time"
    found = quantise.ours()
    for symbols, counts, (expected, histogram) in zip(found.symbols, found.counts, quantise.reference(), strict=True):
        assert torch.equal(symbols, expected)
        assert torch.equal(counts[:255], histogram[1:])
    assert all(map(torch.equal, restore.ours(), restore.reference()))
    for index, (weight, symbols) in enumerate(zip(weights, found.symbols, strict=True)):
        assert float((restore.ours()[index] - weight).abs().max()) <= 0.2501 * float(weight.square().mean().sqrt())
        assert symbols.dtype == torch.int8
