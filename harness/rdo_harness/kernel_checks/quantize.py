"""Symbols, histograms and restored weights against IEEE arithmetic in numpy, to the bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rdo_kernels
from rdo_harness.kernel_checks.samples import DTYPES, check, weights
from rdo_kernels import BOUNDS, LIMITS, Quantized

COUNTS = (0, 1, 97, 65_537, 140_003)
SYMBOLS = (torch.int8, torch.int16, torch.int32)


def _expected(
    weight: Tensor, steps: Tensor, dead_zone: float, dtype: torch.dtype
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Symbols, counts and lost weights, by numpy's division in float32 and rounding in float64."""
    values = weight.detach().cpu().to(torch.float32).numpy().reshape(-1)
    step = steps.cpu().numpy().reshape(-1)
    per_weight = np.repeat(step, len(values) // max(len(step), 1)) if len(step) > 1 else step
    with np.errstate(all="ignore"):
        scaled = (values / per_weight).astype(np.float64)
    within = np.abs(scaled) <= LIMITS[dtype]  # not for NaN
    zero = np.abs(scaled) < float(np.float32(0.5 + dead_zone))
    symbols = np.where(within & ~zero, np.rint(np.where(within, scaled, 0.0)), 0.0).astype(np.int64)
    bound = BOUNDS[dtype]
    bins = np.where(within & (np.abs(symbols) <= bound), symbols + bound, 2 * bound + 1)
    return symbols, np.bincount(bins, minlength=2 * bound + 2), int((~within).sum())


def _same(found: Quantized, tensors: Sequence[Tensor], steps: Sequence[Tensor], dead_zone: float = 0.0) -> None:
    assert found.counts is not None
    assert found.counts.dtype == found.lost.dtype == torch.int64
    for index, (tensor, step) in enumerate(zip(tensors, steps, strict=True)):
        symbols = found.symbols[index]
        expected, counts, lost = _expected(tensor, step, dead_zone, symbols.dtype)
        assert symbols.shape == tensor.shape
        wrong = np.flatnonzero(symbols.cpu().numpy().reshape(-1) != expected)
        assert not len(wrong), f"tensor {index}: {len(wrong)} symbols differ, first {wrong[:5]}"
        assert (found.counts[index].cpu().numpy() == counts).all(), f"tensor {index}: the histogram differs"
        assert int(found.lost[index]) == lost, f"tensor {index}: {int(found.lost[index])} lost, {lost} expected"


def _step(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


@check
def symbols_and_histograms_are_exact(device: torch.device, backend: str | None) -> None:
    """Steps from 5 standard deviations, with nearly all symbols zero, to 1/2500 of one, beyond many bins."""
    tensors = [weights(count, device) for count in COUNTS]
    tensors += [weights(count, device, kind) for kind in DTYPES[1:] for count in (97, 65_537)]
    for dtype, dead_zone, first in zip(SYMBOLS, (0.0, 0.2, 0.0), (0.25, 0.02, 0.001), strict=True):
        steps = [_step(first / 7 ** (number % 3), device) for number, _ in enumerate(tensors)]
        found = rdo_kernels.quantize(tensors, steps, dead_zone, dtype=dtype, backend=backend)
        _same(found, tensors, steps, dead_zone)


@check
def symbols_are_the_same_without_a_histogram(device: torch.device, backend: str | None) -> None:
    tensors = [weights(count, device) for count in COUNTS]
    steps = [_step(0.001, device)] * len(tensors)
    for dtype in SYMBOLS:
        counted = rdo_kernels.quantize(tensors, steps, dtype=dtype, backend=backend)
        found = rdo_kernels.quantize(tensors, steps, dtype=dtype, count=False, backend=backend)
        assert found.counts is None
        assert all(map(torch.equal, found.symbols, counted.symbols))
        assert torch.equal(found.lost, counted.lost)


@check
def one_symbol_everywhere(device: torch.device, backend: str | None) -> None:
    """What overflows a counter that is too small."""
    symbols = (-127, -17, -16, -9, -1, 0, 6, 7, 15, 16)
    tensors = [torch.full((count,), 0.5 * symbol, device=device) for symbol in symbols for count in (65_536, 33_001)]
    steps = [_step(0.5, device)] * len(tensors)
    _same(rdo_kernels.quantize(tensors, steps, dtype=torch.int8, backend=backend), tensors, steps)


@check
def ties_round_to_even_and_neighbours_to_the_nearest(device: torch.device, backend: str | None) -> None:
    """Around (k + 1/2) times a step, where a quotient that is off by one bit gives another symbol."""
    generator = torch.Generator().manual_seed(5)
    for exponent, dtype in zip((-120, -90, -8, 0, 100), (*SYMBOLS, torch.int8, torch.int32), strict=True):
        mantissas = 1 + torch.rand(300, generator=generator)
        mantissas[:3] = torch.tensor([1.0, 1.5, 2 - 2.0**-23])
        steps = torch.ldexp(mantissas, torch.tensor(exponent))
        k = torch.randint(-40, 40, (300, 64), generator=generator) + 0.5
        k[::2] *= 64.0
        ties = (k.double() * steps.double()[:, None]).float()
        infinity = torch.tensor(math.inf)
        near = torch.stack([ties, ties.nextafter(infinity), ties.nextafter(-infinity)], dim=1).reshape(300, -1)
        for rows in (near.to(device), near[:, :191].to(device).contiguous()):  # of a multiple of 16, and a prime number
            found = rdo_kernels.quantize([rows], [steps.to(device)], dtype=dtype, backend=backend)
            _same(found, [rows], [steps])


@check
def large_symbols_round_to_even(device: torch.device, backend: str | None) -> None:
    generator = torch.Generator().manual_seed(6)
    k = torch.tensor([2.0**e for e in range(15, 31)]).repeat_interleave(200) * (
        1 + torch.rand(3200, generator=generator)
    )
    k = torch.cat(
        [k, k.round() + 0.5, -k, torch.tensor([2.0**30, 2.0**30 + 64, 2.0**22 + 0.5, 2.0**22 + 1.5, 2.0**31])]
    )
    for value in (1.0, 0.01, 3e-30):
        tensor = (k * value).to(device)
        for dtype in (torch.int16, torch.int32):
            step = [_step(value, device)]
            _same(rdo_kernels.quantize([tensor], step, dtype=dtype, backend=backend), [tensor], step)


@check
def zeros_denormals_nan_and_infinity_among_weights(device: torch.device, backend: str | None) -> None:
    values = [0.0, -0.0, 1e-40, -1e-40, math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-30, 0.05]
    for number, step in enumerate((0.01, 1e-30, 1e-38, 1e30, 3e38)):
        tensor = weights(33_000, device, DTYPES[number % 3])
        for position in (0, 32_762, 32_980):
            tensor[position : position + len(values)] = torch.tensor(values, device=device).to(tensor.dtype)
        for symbols in SYMBOLS:
            found = rdo_kernels.quantize([tensor], [_step(step, device)], dtype=symbols, backend=backend)
            _same(found, [tensor], [_step(step, device)])
            assert int(found.lost) >= 9


@check
def a_step_for_each_row(device: torch.device, backend: str | None) -> None:
    generator = torch.Generator().manual_seed(7)
    sizes = [(1000, 64), (97, 70), (3, 35_000), (2, 65_537), (33_001, 1), (5, 0)]
    tensors = [weights(rows * length, device).reshape(rows, length) for rows, length in sizes]
    steps = [(0.001 + 0.1 * torch.rand(rows, generator=generator)).to(device) for rows, _ in sizes]
    for dead_zone, dtype in ((0.0, torch.int32), (0.3, torch.int8)):
        found = rdo_kernels.quantize(tensors, steps, dead_zone, dtype=dtype, backend=backend)
        _same(found, tensors, steps, dead_zone)
        restored = rdo_kernels.dequantize(found.symbols, steps, backend=backend)
        for weight, symbols, step in zip(restored, found.symbols, steps, strict=True):
            assert torch.equal(weight, symbols.float() * step[:, None])


@check
def weights_come_back_as_products_in_float32(device: torch.device, backend: str | None) -> None:
    generator = torch.Generator().manual_seed(8)
    for dtype in SYMBOLS:
        limit = LIMITS[dtype]
        symbols = [torch.randint(-limit, limit + 1, (n,), generator=generator).to(dtype).to(device) for n in COUNTS]
        for value in (0.0123, 1e-9):
            steps = [_step(value, device)] * len(symbols)
            for kind in DTYPES:
                found = rdo_kernels.dequantize(symbols, steps, kind, backend=backend)
                for restored, symbol in zip(found, symbols, strict=True):
                    exact = (symbol.cpu().numpy().astype(np.float32) * np.float32(value)).astype(np.float32)
                    expected = torch.from_numpy(exact).to(kind)
                    assert restored.dtype == kind
                    _restored(restored.cpu(), expected, backend)


def _restored(found: Tensor, expected: Tensor, backend: str | None) -> None:
    if found.dtype == torch.bfloat16 and backend == "triton" and found.numel():
        # Triton's interpreter truncates, which is one unit in the last place at most.
        difference = found.view(torch.int16).int() - expected.view(torch.int16).int()
        assert -1 <= int(difference.min()) <= int(difference.max()) <= 0, "more than truncated"
    else:
        assert torch.equal(found, expected)


@check
def weights_are_kept_and_rounded(device: torch.device, backend: str | None) -> None:
    """Weights become the nearest multiples of their steps, copies what the weights were; sums are those of copies."""
    for kind in DTYPES:
        tensors = [weights(count, device, kind) for count in COUNTS]
        tensors[-1][[0, 70_000]] = math.nan
        before = [tensor.clone() for tensor in tensors]
        kept = [torch.full_like(tensor, math.inf) for tensor in tensors]
        steps = torch.tensor([0.01, 0.3, 1e-8, 0.02, 0.0007], dtype=torch.float32, device=device)
        found = rdo_kernels.keep_and_round(tensors, kept, steps.unbind(), backend=backend)
        assert all(torch.equal(copy.nan_to_num(), old.nan_to_num()) for copy, old in zip(kept, before, strict=True))
        assert torch.equal(found.nan_to_num(), rdo_kernels.moments(before, backend=backend).nan_to_num())
        for tensor, old, step in zip(tensors, before, steps.cpu().numpy(), strict=True):
            scaled = old.cpu().to(torch.float32).numpy() / step
            expected = torch.from_numpy((np.rint(scaled) * step).astype(np.float32)).to(kind)
            assert torch.equal(tensor.cpu().isnan(), expected.isnan())
            _restored(tensor.cpu().nan_to_num() + 0.0, expected.nan_to_num() + 0.0, backend)  # of zeros no sign


@check
def rows_and_columns_are_rounded_to_their_steps(device: torch.device, backend: str | None) -> None:
    """Chunks end within rows; beside them a tensor with one step."""
    for kind in DTYPES:
        matrices = [weights(101 * 1303, device, kind).reshape(101, 1303), weights(77, device, kind)]
        matrices += [weights(3 * 40 * 900, device, kind).reshape(3, 40, 900), weights(7, device, kind).reshape(7, 1)]
        generator = torch.Generator().manual_seed(1)
        steps = [0.001 + 0.1 * torch.rand(count, generator=generator).to(device) for count in (101, 1, 900, 7)]
        for count, shape in ((101, (101, 1)), (1303, (1, 1303))):
            own = 0.001 + 0.1 * torch.rand(count, generator=generator).to(device)
            several = [own.reshape(shape) if count == 1303 else own, steps[1][0], steps[2].reshape(1, -1), steps[3]]
            before, tensors = matrices, [matrix.clone() for matrix in matrices]
            kept = [torch.full_like(tensor, math.inf) for tensor in tensors]
            found = rdo_kernels.keep_and_round(tensors, kept, several, backend=backend)
            assert all(torch.equal(copy, old) for copy, old in zip(kept, before, strict=True))
            assert torch.equal(found, rdo_kernels.moments(before, backend=backend))
            wide = [own.reshape(shape), steps[1], steps[2].reshape(1, 1, -1), steps[3].reshape(7, 1)]
            for tensor, old, step in zip(tensors, before, wide, strict=True):
                scaled = old.cpu().to(torch.float32).numpy() / step.cpu().numpy()
                expected = torch.from_numpy((np.rint(scaled) * step.cpu().numpy()).astype(np.float32)).to(kind)
                _restored(tensor.cpu() + 0.0, expected + 0.0, backend)


@check
def only_the_weights_and_their_copies_are_written(device: torch.device, backend: str | None) -> None:
    """In misaligned views, and with steps of which halves are ties."""
    for offset in (1, 3):
        stores = [torch.full((70_010,), 7.0, device=device) for _ in range(2)]
        tensor, kept = (store[offset : offset + 70_001] for store in stores)
        tensor.copy_(0.25 * torch.arange(-35_000, 35_001, device=device))
        before = tensor.clone()
        rdo_kernels.keep_and_round([tensor], [kept], [torch.tensor([0.5], device=device)], backend=backend)
        assert torch.equal(kept, before)
        assert torch.equal(tensor.double().cpu(), (2 * before.double().cpu()).round() / 2)
        for store in stores:
            assert (store[:offset] == 7.0).all()
            assert (store[offset + 70_001 :] == 7.0).all()


@check
def misaligned_views_are_read_and_nothing_else_is_touched(device: torch.device, backend: str | None) -> None:
    for dtype, offset in zip((*DTYPES, torch.float32), (1, 2, 3, 3), strict=True):
        store = weights(70_010, device, dtype)
        store[:offset] = math.nan
        store[offset + 70_001 :] = math.nan
        before, tensor, step = store.clone(), store[offset : offset + 70_001], [_step(0.01, device)]
        found = rdo_kernels.quantize([tensor], step, dtype=torch.int8, backend=backend)
        _same(found, [tensor], step)
        assert int(found.lost) == 0, "read beside the tensor"
        assert torch.equal(store.nan_to_num(nan=7.0), before.nan_to_num(nan=7.0)), "the weights changed"


@check
def quantisation_repeats_to_the_bit(device: torch.device, backend: str | None) -> None:
    tensors, results = [weights(count, device) for count in (97, 65_537)], set()
    steps = [_step(0.003, device)] * len(tensors)
    for _ in range(3):
        found = rdo_kernels.quantize(tensors, steps, 0.1, dtype=torch.int8, backend=backend)
        assert found.counts is not None
        results.add(b"".join(t.cpu().numpy().tobytes() for t in (*found.symbols, found.counts, found.lost)))
    assert len(results) == 1, f"{len(results)} different results"
