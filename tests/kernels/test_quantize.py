"""Quantisation beyond the checks that every backend passes (test_triton.py), and its Triton kernels as compiled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rdo_kernels
from rdo.quantizers import RelativeQuantizer, UniformQuantizer


def test_counts_and_lost_weights_are_told_apart() -> None:
    """A symbol without a bin is kept; a weight without a symbol is 0 and lost; both are in the last column."""
    weight = torch.tensor([0.0, 1.0, -1.0, 127.0, 128.0, 1023.0, -1024.0, 32767.0, 32768.0, 1e12, float("nan")])
    step = [torch.tensor(1.0)]
    narrow = rdo_kernels.quantize([weight], step, dtype=torch.int8)
    assert narrow.symbols[0].tolist() == [0, 1, -1, 127, 0, 0, 0, 0, 0, 0, 0]
    assert (int(narrow.lost), int(narrow.counts[0, -1]), int(narrow.counts[0, 127])) == (7, 7, 1)
    middle = rdo_kernels.quantize([weight], step, dtype=torch.int16)
    assert middle.symbols[0].tolist() == [0, 1, -1, 127, 128, 1023, -1024, 32767, 0, 0, 0]
    assert (int(middle.lost), int(middle.counts[0, -1])) == (3, 5)
    wide = rdo_kernels.quantize([weight], step)
    assert wide.symbols[0].tolist() == [0, 1, -1, 127, 128, 1023, -1024, 32767, 32768, 0, 0]
    assert (int(wide.lost), int(wide.counts[0, -1]), int(wide.counts.sum())) == (2, 5, 11)


def test_tensors_of_any_type_and_layout_share_a_call() -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(300, 300, generator=generator)
    tensors = [square, square.T, square[:, ::3], square.double(), square.bfloat16(), square.half().T, square[:0]]
    steps = [torch.tensor(0.1)] * len(tensors)
    found = rdo_kernels.quantize(tensors, steps)
    for tensor, symbols in zip(tensors, found.symbols, strict=True):
        assert symbols.is_contiguous()
        assert torch.equal(symbols, (tensor.float() / 0.1).round().int())
    restored = rdo_kernels.dequantize([symbols.T for symbols in found.symbols], steps, torch.float64)
    for weight, symbols in zip(restored, found.symbols, strict=True):
        assert torch.equal(weight, (symbols.T * torch.tensor(0.1)).double())


@pytest.mark.parametrize("backend", [None, "compiled", "blocks"])
def test_many_small_tensors_with_steps_of_any_shape(backend: str | None) -> None:
    """Sizes 0 to 300, and one step as [], [1] or [1, 1], float64 or with a gradient, or a column of them."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in range(301)]
    one = torch.tensor(0.25)
    kinds = [one, one.reshape(1), one.reshape(1, 1), one.double(), one.clone().requires_grad_()]
    steps = [torch.full((size, 1), 0.25) if size % 7 == 6 else kinds[size % len(kinds)] for size in range(301)]
    found = rdo_kernels.quantize(tensors, steps, dtype=torch.int16, backend=backend)
    restored = rdo_kernels.dequantize(found.symbols, steps, backend=backend)
    for row, (tensor, symbols, weight) in enumerate(zip(tensors, found.symbols, restored, strict=True)):
        expected = (tensor.detach().double() / 0.25).round()
        assert torch.equal(symbols.double(), expected)
        assert torch.equal(found.counts[row, :-1], torch.bincount(expected.long() + 1023, minlength=2047))
        assert torch.equal(weight.double(), expected * 0.25)
        assert not weight.requires_grad
    assert not found.lost.any()


def test_no_tensors() -> None:
    found = rdo_kernels.quantize([], [], dtype=torch.int8)
    assert found.symbols == []
    assert found.counts.shape == (0, 256)
    assert rdo_kernels.dequantize([], []) == []


def test_wrong_arguments_are_refused() -> None:
    weight, step = torch.zeros(6), torch.ones(())
    with pytest.raises(ValueError, match="int8, int16 or int32"):
        rdo_kernels.quantize([weight], [step], dtype=torch.int64)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        rdo_kernels.quantize([weight], [step], backend="cuda")
    with pytest.raises(ValueError, match="4 steps do not divide 6 weights"):
        rdo_kernels.quantize([weight], [torch.ones(4)])
    with pytest.raises(ValueError, match="as many tensors of steps"):
        rdo_kernels.quantize([weight], [])
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        rdo_kernels.dequantize([weight.long()], [step])


@pytest.mark.parametrize("backend", ["compiled", "blocks"])
def test_every_number_of_16_bits(backend: str) -> None:
    """All of bfloat16 and float16 are read as the numbers they are, and numbers around all of them rounded to them."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        weight = patterns.view(dtype)
        for step in (2.0**-24, 0.013, 3.0, 1e30):
            scaled = weight.float() / torch.tensor(step)
            within = scaled.abs() <= 2**30
            found = rdo_kernels.quantize([weight], [torch.tensor(step)], backend=backend)
            assert torch.equal(found.symbols[0], torch.where(within, scaled.round(), 0.0).int())
            assert int(found.lost) == int((~within).sum())
        for factor in (1.0 - 2.0**-9, 1.0 - 2.0**-12, 1.0, 1.0 + 2.0**-12, 1.0 + 2.0**-9, 1.0 + 3 * 2.0**-12):
            steps = weight.float() * factor
            steps = torch.cat(
                [steps[steps.isfinite()], torch.tensor([65519.9, 65520.0, 3.4e38, 1e-45, 0.0, 6e-8, 3e-8])]
            )
            ones = torch.ones(len(steps), dtype=torch.int8)
            (found_weights,) = rdo_kernels.dequantize([ones], [steps], dtype, backend=backend)
            assert torch.equal(found_weights.view(torch.int16), steps.to(dtype).view(torch.int16))


@pytest.mark.parametrize(
    "quantizer", [UniformQuantizer(step=0.01), RelativeQuantizer(granularity="row", dead_zone=0.1)]
)
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_a_quantizer_counts_the_symbols_that_it_gives(quantizer: Any, scale: float) -> None:
    weight = scale * torch.randn(200, 100, generator=torch.Generator().manual_seed(1))
    expected = torch.unique(quantizer.quantize(weight).symbols, return_counts=True)[1]
    assert torch.equal(quantizer.counts(weight), expected)


def test_threads_do_not_change_anything() -> None:
    weight = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found = rdo_kernels.quantize([weight], [torch.tensor(0.3)], dtype=torch.int8)
            results.append((found.symbols[0], found.counts, found.lost))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    assert int(results[0][1].sum()) == 1_000_003


def test_division_by_fused_multiplications_is_exact() -> None:
    """The arithmetic that replaces a division on a GPU, step by step on a CPU, against the division.

    Among 3e7 pairs, half of them around (k + 1/2) times a step, where one wrong bit changes a symbol.
    """
    numba = pytest.importorskip("numba")
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fma(*arguments)

        return types.float32(types.float32, types.float32, types.float32), build

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def differences(weights: Any, steps: Any, out: Any) -> int:
        wrong = 0
        for i in range(weights.size):
            magnitude = abs(steps[i])
            factor = np.float32(1.0)
            if magnitude < np.float32(2.0**-96):
                factor = np.float32(2.0**64)
            elif magnitude > np.float32(2.0**96):
                factor = np.float32(2.0**-64)
            step, weight = steps[i] * factor, weights[i] * factor
            inverse = np.float32(1.0) / step
            quotient = weight * inverse
            quotient = fma(fma(-quotient, step, weight), inverse, quotient)
            quotient = fma(fma(-quotient, step, weight), inverse, quotient)
            exact = weights[i] / steps[i]
            out[i] = quotient
            if abs(exact) >= np.float32(0.25) and abs(exact) <= np.float32(2.0**31):
                wrong += quotient != exact
            else:  # the symbol is 0, or there is none
                wrong += (abs(exact) < np.float32(0.25)) != (abs(quotient) < np.float32(0.25))
        return wrong

    generator = np.random.default_rng(0)
    out = np.empty(1_000_000, np.float32)
    for exponent in (-149, -126, -100, -96, -60, -8, -7, 0, 1, 60, 96, 97, 110, 120, 126):
        mantissa = 1 + generator.integers(0, 2**23, out.size) * 2.0**-23
        mantissa[:1000] = 2 - 2.0**-23
        with np.errstate(over="ignore"):
            steps = np.ldexp(mantissa, exponent).astype(np.float32)
            quotients = np.exp2(generator.uniform(-3, 32, out.size))
            weights = (quotients * steps.astype(np.float64)).astype(np.float32)
            halves = ((np.floor(np.exp2(generator.uniform(0, 22, out.size))) + 0.5) * steps.astype(np.float64)).astype(
                np.float32
            )
            ties = np.nextafter(halves, np.where(generator.random(out.size) < 0.5, np.float32(0), np.float32(np.inf)))
        for values in (weights, np.where(generator.random(out.size) < 0.3, halves, ties).astype(np.float32)):
            usable = np.isfinite(values) & (np.abs(values) > 0)
            assert differences(values[usable], steps[usable], out) == 0, exponent


NVIDIA = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32)]
AMD = ("hip", "gfx942", 64)


def compiled(name: str, target: tuple[str, int | str, int], **changes: Any) -> dict[str, Any]:
    """Assembly of a kernel for int8 symbols of float32, compiled ahead of time for a GPU that need not be here."""
    triton = pytest.importorskip("triton", reason="triton has no builds for macOS and Windows")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rdo_kernels.gpu import quantize_kernels

    language = triton.language
    kernel = getattr(quantize_kernels, name)
    types = {"chunks": "*i64", "zone": "*fp32", "own": "*i32", "counts": "*i64", "lost": "*i64"}
    constants = {"WEIGHT": language.float32, "SYMBOL": language.int8, "LIMIT": 127, "BOUND": 127, "COUNT": True}
    constants |= {"GROUP": 0, "FUSED": True, "ALIGNED": True, "BLOCK": 2048 if name == "quantize" else 1024, **changes}
    source = ASTSource(
        kernel,
        signature={argument: types.get(argument, "constexpr") for argument in kernel.arg_names},
        constexprs={(i,): constants[argument] for i, argument in enumerate(kernel.arg_names) if argument not in types},
        attrs={(i,): [["tt.divisibility", 16]] for i, argument in enumerate(kernel.arg_names) if argument in types},
    )
    options: dict[str, Any] = {"num_warps": 8}
    if name == "quantize" and constants["GROUP"] == 0 and target != AMD:
        options["maxnreg"] = 80
    assembly: dict[str, Any] = triton.compile(source, target=GPUTarget(*target), options=options).asm
    return assembly


@pytest.mark.parametrize("target", NVIDIA, ids=lambda target: f"sm{target[1]}")
def test_full_blocks_move_wide_words(target: tuple[str, int, int]) -> None:
    """Eight weights of a thread: two loads of 16 bytes and a store of 8. Back, four symbols come in one load."""
    ptx = str(compiled("quantize", target)["ptx"])
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 2
    assert len(re.findall(r"st\.global\.v2\.b32", ptx)) == 1
    back = str(compiled("dequantize", target)["ptx"])
    assert len(re.findall(r"ld\.global\.b8", back)) == 4, "more than those of the masked block at the end"
    assert len(re.findall(r"st\.global\.v4\.b32", back)) == 1
    unaligned = (
        compiled("quantize", target, ALIGNED=False)["ptx"] + compiled("dequantize", target, ALIGNED=False)["ptx"]
    )
    assert not re.findall(r"(?:ld|st)\.global\.v\d", unaligned), "would fault on misaligned weights"


@pytest.mark.parametrize("target", NVIDIA, ids=lambda target: f"sm{target[1]}")
def test_neither_divisions_nor_float64_nor_float_atomics(target: tuple[str, int, int]) -> None:
    ptx = str(compiled("quantize", target)["ptx"])
    assert len(re.findall(r"div\.rn\.f32", ptx)) == 1, "not only the reciprocal of the step, before the loop"
    assert ".f64" not in ptx
    assert set(re.findall(r"(?:atom|red)\.global\S+", ptx)) == {
        "atom.global.gpu.relaxed.add.u32",
        "atom.global.gpu.relaxed.add.u64",
    }


@pytest.mark.parametrize("symbol", ["int8", "int32"])
@pytest.mark.parametrize(("group", "most"), [(0, 80), (16, 128)])
def test_registers_suffice_without_spills(symbol: str, group: int, most: int, tmp_path: Path) -> None:
    """Of 65,536, so that three programs of 256 threads share a multiprocessor, or two where each row has a step."""
    changes: dict[str, Any] = {"GROUP": group}
    triton = pytest.importorskip("triton")
    if symbol == "int32":
        changes |= {"SYMBOL": triton.language.int32, "LIMIT": 2**30, "BOUND": 1023}
    (tmp_path / "kernel.cubin").write_bytes(compiled("quantize", NVIDIA[1], **changes)["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True)
    (registers, stack) = re.findall(r"REG:(\d+) STACK:(\d+)", usage.stdout)[0]
    assert int(registers) <= most
    assert int(stack) == 0
    amdgcn = str(compiled("quantize", AMD, **changes)["amdgcn"])
    assert re.findall(r"\.vgpr_spill_count:\s*(\d+)", amdgcn) == ["0"]


def test_all_variants_compile() -> None:
    triton = pytest.importorskip("triton")
    language = triton.language
    for target in (NVIDIA[1], AMD):
        for kind, group in ((language.bfloat16, 16), (language.float16, 1)):
            compiled("quantize", target, WEIGHT=kind, SYMBOL=language.int16, LIMIT=32767, BOUND=1023, GROUP=group)
            compiled("dequantize", target, WEIGHT=kind, SYMBOL=language.int16, GROUP=group)
        compiled("quantize", target, COUNT=False, SYMBOL=language.int32, LIMIT=2**30, BOUND=1023)


@pytest.mark.parametrize("backend", [None, "compiled", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_columns_are_those_of_the_rows_of_the_transposed(backend: str | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(37, 130, generator=generator).to(dtype)
    weight[5, 7] = float("nan")
    steps = 0.05 + torch.rand(130, generator=generator)
    beside, one = torch.randn(9, generator=generator), torch.tensor(0.25)
    columns = [[weight, beside], [steps.reshape(1, -1), one]]
    rows = [[weight.T.contiguous(), beside], [steps, one]]
    for dead_zone in (0.0, 0.3):
        found = rdo_kernels.quantize(*columns, dead_zone, dtype=torch.int16, backend=backend)
        wanted = rdo_kernels.quantize(*rows, dead_zone, dtype=torch.int16, backend=backend)
        assert torch.equal(found.symbols[0].T, wanted.symbols[0])
        assert torch.equal(found.symbols[1], wanted.symbols[1])
        assert found.counts is not None
        assert wanted.counts is not None
        assert torch.equal(found.counts, wanted.counts)
        assert found.lost.tolist() == [1, 0]
    given = rdo_kernels.dequantize(found.symbols, columns[1], dtype, backend=backend)
    again = rdo_kernels.dequantize(wanted.symbols, rows[1], dtype, backend=backend)
    assert torch.equal(given[0].T, again[0])
    assert torch.equal(given[1], again[1])


def test_columns_of_another_number_are_refused() -> None:
    weight, step = torch.zeros(4, 6), torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"steps of 4 columns for the size \[4, 6\]"):
        rdo_kernels.quantize([weight], [step])
    with pytest.raises(ValueError, match=r"steps of 4 columns for the size \[4, 6\]"):
        rdo_kernels.dequantize([weight.to(torch.int32)], [step])
