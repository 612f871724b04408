"""A peer's weights in symbols: exact, counted to the byte, and refused where they are not what the peer says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import rdo
from rdo.checkpoint import inspect_compressed, load_quantized
from rdo.quantizers import AllocatedQuantizer
from rdo_harness.peers.completion import save_expressed
from rdo_harness.peers.conformance import check_levels, check_sparsity
from rdo_harness.peers.environments import PeerError
from rdo_harness.peers.expression import Expression, decoded, express, side_bytes

ROWS, COLUMNS, GROUP = 12, 128, 32


def quantized(bits: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Integers [rows, columns] and positive scales [rows, groups]."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, COLUMNS), generator=generator)
    return symbols.float(), 0.01 + 0.1 * torch.rand(ROWS, COLUMNS // GROUP, generator=generator)


def dequantized(symbols: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
    zeros = zero_point.repeat_interleave(GROUP, 1) if isinstance(zero_point, Tensor) else zero_point
    return (symbols - zeros) * scale.repeat_interleave(GROUP, 1)


def test_symmetric_groups_are_exact_when_their_scales_are_float16() -> None:
    symbols, scale = quantized()
    scale = scale.half().float()
    weight = dequantized(symbols, scale)
    found = express("w", weight, scale)
    assert torch.equal(found.symbols, symbols.int())
    assert found.scale.dtype == torch.float16
    assert found.zero_point is None
    assert torch.equal(found.weight(), weight)
    assert torch.equal(found.transposed().weight(), weight.t())


def test_scales_are_rounded_by_at_most_2_to_the_minus_11() -> None:
    symbols, scale = quantized()
    weight = dequantized(symbols, scale)
    error = (express("w", weight, scale).weight() - weight).abs()
    assert 0 < float((error / weight.abs().clamp(min=1e-9)).max()) <= 2.0**-11
    tiny = scale * 1e-6
    found = express("w", dequantized(symbols, tiny), tiny)
    assert found.scale.dtype == torch.float32
    assert torch.equal(found.weight(), dequantized(symbols, tiny))


def test_zero_points_are_folded_in_when_they_are_integers_and_kept_when_not() -> None:
    symbols, scale = quantized()
    scale = scale.half().float()
    whole = torch.arange(scale.numel()).view_as(scale).float()
    found = express("w", dequantized(symbols + 8, scale, whole), scale, whole)
    assert found.zero_point is None
    assert torch.equal(found.symbols, (symbols + 8 - whole.repeat_interleave(GROUP, 1)).int())
    real = (whole / 7).half().float()
    weight = dequantized(symbols + 8, scale, real)
    found = express("w", weight, scale, real)
    assert torch.equal(found.symbols, (symbols + 8).int())
    assert found.zero_point is not None
    assert found.zero_point.dtype == torch.float16
    assert torch.equal(found.weight(), weight)
    assert int(found.levels().max()) <= 16


@pytest.mark.parametrize("transposed", [False, True])
def test_a_file_gives_the_weights_back_and_counts_scales_and_zero_points(tmp_path: Path, transposed: bool) -> None:
    symbols, scale = quantized()
    zeros = torch.full_like(scale, 7.5)
    found = express("w", dequantized(symbols, scale, zeros), scale, zeros)
    found = found.transposed() if transposed else found
    quantizer = AllocatedQuantizer({"w": 1.0}, bits=0.0, distortion="absolute")
    state = {**found.entries("w"), "bias": torch.ones(3)}
    rdo.save_compressed(state, tmp_path / "w.rdo", quantizer=quantizer, compressible=lambda name, _: name == "w")
    coded, raw = load_quantized(tmp_path / "w.rdo")
    weights = decoded(coded, raw)
    assert weights.keys() == {"w", "bias"}
    assert torch.equal(weights["w"], found.weight())
    assert side_bytes(raw) == 2 * 2 * scale.numel()
    assert inspect_compressed(tmp_path / "w.rdo").raw_bytes == side_bytes(raw) + 12


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    symbols, scale = quantized()
    model = torch.nn.Sequential(torch.nn.Embedding(ROWS, COLUMNS), torch.nn.Linear(COLUMNS, ROWS, bias=False))
    model[1].weight = model[0].weight
    found = express("0.weight", dequantized(symbols, scale), scale)
    save_expressed(model, {"0.weight": found}, {}, tmp_path / "w.rdo", ("rans",))
    weights = decoded(*load_quantized(tmp_path / "w.rdo"))
    assert torch.equal(weights["0.weight"], found.weight())
    assert torch.equal(weights["1.weight"], found.weight())
    info = inspect_compressed(tmp_path / "w.rdo")
    assert info.parameters == symbols.numel() + scale.numel()


def test_what_is_not_on_the_grid_is_refused() -> None:
    symbols, scale = quantized()
    weight = dequantized(symbols, scale)
    weight[3, 5] += 0.01 * scale[3, 0]
    with pytest.raises(PeerError, match=r"w: 1 of 1536 weights are not an integer times the scale.* 0\.01 steps"):
        express("w", weight, scale)
    with pytest.raises(PeerError, match=r"scales of size \[12, 5\] do not divide a matrix of \[12, 128\]"):
        express("w", weight, torch.ones(ROWS, 5))
    with pytest.raises(PeerError, match="not an integer"):
        express("w", weight, torch.zeros_like(scale))


def test_levels_and_sparsity_are_checked() -> None:
    symbols = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 5]], dtype=torch.int32)
    expression = Expression(symbols, torch.ones(2, 1))
    assert expression.levels().tolist() == [4, 2]
    assert Expression(symbols, torch.ones(1, 2)).levels().tolist() == [2, 4]
    assert check_levels({"w": expression}, 2) == 4
    with pytest.raises(PeerError, match="w: 4 different weights share a scale, 1 bits were asked for"):
        check_levels({"w": expression}, 1)
    assert check_sparsity({"w": symbols}, 0.5) == 0.5
    with pytest.raises(PeerError, match=r"w: 50\.00% of the weights are zero, 60\.00% were asked for"):
        check_sparsity({"w": symbols}, 0.6)
