"""``rdo compress``, ``decompress``, ``inspect`` and ``fit`` through files, as a user meets them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rdo.checkpoint import inspect_compressed, load_compressed, save_compressed
from rdo.quantizers import RelativeQuantizer, UniformQuantizer
from rdo_harness import cli


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embedding.weight": torch.randn(60, 64, generator=generator) * 0.04,
        "layer.weight": torch.randn(32, 64, generator=generator).bfloat16() * 0.04,
        "layer.bias": torch.randn(32, generator=generator),
        "ids": torch.arange(6).reshape(1, 6),
    }


@pytest.fixture
def plain(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def sharded(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    directory = tmp_path / "model"
    (directory / "1_Pooling").mkdir(parents=True)
    names = list(state)
    weight_map = {}
    for index, part in enumerate((names[:1], names[1:])):
        shard = f"model-{index}.safetensors"
        save_file({name: state[name] for name in part}, directory / shard)
        weight_map |= dict.fromkeys(part, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text("{}")
    (directory / "1_Pooling" / "config.json").write_text("[]")
    (directory / "pytorch_model.bin").write_text("a pickle")
    (directory / ".cache").mkdir()
    return directory


def expected(state: dict[str, Tensor], quantizer: Any) -> dict[str, Tensor]:
    coded = {"embedding.weight", "layer.weight"}
    return {
        name: quantizer.quantize(tensor).dequantize(tensor.dtype) if name in coded else tensor
        for name, tensor in state.items()
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "quantizer"),
    [
        ([], UniformQuantizer(step=2**-8)),
        (["--step", "0.01", "--dead-zone", "0.25", "--coder", "huffman"], UniformQuantizer(step=0.01, dead_zone=0.25)),
        (["--step", "2^-6", "--coder", "fixed_length"], UniformQuantizer(step=2**-6)),
        (["--relative-step", "0.5", "--coder", "exp_golomb"], RelativeQuantizer(ratio=0.5)),
        (["--relative-step", "0.5", "--granularity", "row"], RelativeQuantizer(ratio=0.5, granularity="row")),
    ],
)
def test_a_file_goes_there_and_back(
    plain: Path, state: dict[str, Tensor], options: list[str], quantizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = plain.with_name("model.rdo"), plain.with_name("back.safetensors")
    report = run_json(capsys, "compress", plain, out, *options)
    info = inspect_compressed(out)
    assert report["file_bytes"] == info.file_bytes == out.stat().st_size
    assert report["plain_bytes"] == sum(tensor.nbytes for tensor in state.values())
    assert {row["kind"] for row in report["tensors"]} == {"coded", "raw"}
    assert cli.main(["decompress", str(out), str(back)]) == 0
    assert "back.safetensors: " in capsys.readouterr().out
    assert same(load_file(back), expected(state, quantizer))


@pytest.mark.parametrize("options", [[], ["--distortion", "absolute", "--dead-zone", "0.1", "--coder", "huffman"]])
def test_a_size_in_bits_per_parameter(plain: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, bits = plain.with_name("model.rdo"), 5.0
    report = run_json(capsys, "compress", plain, out, "--bits", bits, *options)
    assert 8 * out.stat().st_size / (60 * 64 + 32 * 64 + 32 + 6) == report["bits_per_parameter"]
    assert 0.98 * bits <= report["bits_per_parameter"] <= bits
    quantizer = inspect_compressed(out).tensors[0].quantizer
    assert quantizer is not None
    assert (quantizer["name"], quantizer["bits"]) == ("allocated", bits)
    assert quantizer["distortion"] == ("absolute" if options else "relative")
    assert cli.main(["compress", str(plain), str(out), "--force", "--bits", "5", *options]) == 0
    assert f"{report['bits_per_parameter']:.3f} bits per parameter with everything in the file (--bits 5)" in (
        capsys.readouterr().out
    )
    assert cli.main(["decompress", str(out), str(plain.with_name("back.safetensors"))]) == 0


def test_dtypes_on_the_way(plain: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    out, back = plain.with_name("model.rdo"), plain.with_name("back.safetensors")
    assert cli.main(["compress", str(plain), str(out), "--raw-dtype", "bfloat16"]) == 0
    assert "bits per coded parameter" in capsys.readouterr().out
    assert inspect_compressed(out).raw_bytes == 2 * 32 + 8 * 6
    assert cli.main(["decompress", str(out), str(back), "--dtype", "float16"]) == 0
    loaded = load_file(back)
    assert {str(tensor.dtype) for name, tensor in loaded.items() if name != "ids"} == {"torch.float16"}
    assert torch.equal(loaded["layer.bias"], state["layer.bias"].bfloat16().half())


def test_a_sharded_directory_goes_there_and_back(
    sharded: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = sharded.with_name("small"), sharded.with_name("back")
    assert run_json(capsys, "compress", sharded, out)["file"] == str(out / "model.rdo")
    assert sorted(os.listdir(out)) == ["1_Pooling", "config.json", "model.rdo"]
    assert (out / "1_Pooling" / "config.json").read_text() == "[]"
    assert cli.main(["decompress", str(out), str(back)]) == 0
    assert sorted(os.listdir(back)) == ["1_Pooling", "config.json", "model.safetensors"]
    assert same(load_file(back / "model.safetensors"), expected(state, UniformQuantizer(step=2**-8)))
    assert not [name for name in os.listdir(sharded.parent) if name.startswith(".")]
    capsys.readouterr()
    for directory in (sharded, out):
        names = {row["name"] for row in run_json(capsys, "inspect", directory)["tensors"]}
        assert names == state.keys()
    (out / "mine.txt").write_text("kept")
    assert cli.main(["compress", str(sharded), str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["compress", str(sharded), str(out), "--force", "--step", "0.5"]) == 0
    assert (out / "mine.txt").read_text() == "kept"
    assert inspect_compressed(out / "model.rdo").tensors[0].quantizer == UniformQuantizer(step=0.5).config()


def test_a_plain_directory_and_tied_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(8, 8)
    (tmp_path / "in").mkdir()
    save_compressed({"a": weight, "b": weight}, tmp_path / "in" / "model.rdo")
    assert cli.main(["decompress", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(loaded["a"], loaded["b"])
    assert cli.main(["compress", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert same(load_compressed(tmp_path / "again" / "model.rdo"), loaded)
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "in" / "model.rdo")]) == 0
    assert "tied to a" in capsys.readouterr().out


def test_inspect_accounts_for_every_byte(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = plain.with_name("model.rdo")
    cli.main(["compress", str(plain), str(out)])
    report = run_json_after_reset(capsys, "inspect", out)
    parts = ("header", "table", "index", "payload", "scale", "raw")
    assert report["format"] == "rdo-checkpoint"
    assert sum(report[f"{part}_bytes"] for part in parts) == report["file_bytes"] == out.stat().st_size
    assert cli.main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in ("embedding.weight", "60x64", "rans", "raw float32", "bits/parameter", f"{out.stat().st_size:,}"):
        assert part in printed
    report = run_json(capsys, "inspect", plain)
    assert report["format"] == "safetensors"
    assert report["parameters"] == 60 * 64 + 32 * 64 + 32 + 6
    assert cli.main(["inspect", str(plain)]) == 0
    assert "32x64" in capsys.readouterr().out


def test_inspect_says_what_of_a_plain_file_will_be_coded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"norm": torch.ones(8), "experts": torch.randn(3, 4, 8), "router": torch.randn(3, 8)}
    (folder := tmp_path / "model").mkdir()
    save_file(tensors | {"positions": torch.arange(6).reshape(1, 6)}, folder / "model.safetensors")
    report = run_json(capsys, "inspect", folder)
    said = {row["name"]: row["by_default"] for row in report["tensors"]}
    assert said == {"norm": "raw", "experts": "coded", "router": "coded", "positions": "raw"}
    assert cli.main(["compress", str(folder), str(tmp_path / "small")]) == 0
    coded = {tensor.name for tensor in inspect_compressed(tmp_path / "small" / "model.rdo").tensors if tensor.coder}
    assert coded == {name for name, how in said.items() if how == "coded"}
    capsys.readouterr()
    assert cli.main(["inspect", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["experts", "coded", "float32", "3x4x8", "384"] in lines
    assert ["3", "coded", "1", "96"] in lines
    assert ["1", "raw", "1", "8"] in lines


def run_json_after_reset(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    return run_json(capsys, *arguments)


def test_fit_recovers_the_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(400, 500, generator=generator, dtype=torch.float64) - 0.5
    laplace = -0.05 * uniform.sign() * torch.log1p(-2 * uniform.abs())
    gaussian = torch.randn(400, 500, generator=generator) * 0.05
    save_file({"laplace": laplace.float(), "gaussian": gaussian, "bias": torch.ones(9)}, tmp_path / "m.safetensors")
    fits = run_json(capsys, "fit", tmp_path / "m.safetensors", "--per-tensor", "--step", "2^-6")["fits"]
    by_name = {fit["name"]: fit for fit in fits}
    assert list(by_name) == ["gaussian", "laplace", "all"]
    assert by_name["gaussian"]["theta"]["shape"] == pytest.approx(2.0, abs=0.03)
    assert by_name["laplace"]["theta"]["shape"] == pytest.approx(1.0, abs=0.02)
    assert by_name["laplace"]["theta"]["scale"] == pytest.approx(0.05, rel=0.03)
    assert by_name["gaussian"]["sigma"] == pytest.approx(0.05, rel=0.01)
    for name in ("gaussian", "laplace"):
        fit = by_name[name]
        assert fit["entropy_bits"] <= fit["law_bits"] == pytest.approx(fit["entropy_bits"], abs=0.002)
    analytic = torch.log2(torch.tensor(0.05 * (2 * torch.pi * torch.e) ** 0.5 / 2**-6))
    assert by_name["gaussian"]["law_bits"] == pytest.approx(float(analytic), abs=0.01)
    assert by_name["all"]["weights"] == 400_000
    assert by_name["all"]["law_bits"] > by_name["all"]["entropy_bits"]

    cli.main(["compress", str(tmp_path / "m.safetensors"), str(tmp_path / "m.rdo"), "--step", "2^-10"])
    capsys.readouterr()
    [fit] = run_json(capsys, "fit", tmp_path / "m.rdo", "--entropy-model", "laplace", "--step", "2^-6")["fits"]
    assert fit["theta"]["scale"] == pytest.approx(
        float(torch.cat([laplace, gaussian.double()]).abs().mean()), rel=0.001
    )
    assert cli.main(["fit", str(tmp_path / "m.rdo"), "--per-tensor"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("gaussian", "all", "shape", "entropy (bits/weight)", "200,000"))


def test_misuse_is_exit_code_2_and_one_line(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = plain.with_name("out.rdo"), plain.parent
    (folder / "model.bin").write_bytes(b"PK")
    (folder / "empty").mkdir()
    cases: list[tuple[list[object], str]] = [
        (["compress", plain, out, "--coder", "huffmann"], "did you mean 'huffman'"),
        (["compress", plain, out, "--step", "0"], "step"),
        (["compress", plain, out, "--step", "two"], "2^-8"),
        (["compress", plain, out, "--granularity", "row"], "--relative-step"),
        (["compress", plain, out, "--dead-zone", "-1"], "dead_zone"),
        (["compress", plain, out, "--bits", "0"], "bits must be a positive number"),
        (["compress", plain, out, "--bits", "nan"], "bits must be a positive number"),
        (["compress", plain, out, "--bits", "0.5"], "no steps give less than"),
        (["compress", plain, out, "--bits", "40"], "nothing to choose"),
        (["compress", plain, out, "--bits", "4", "--granularity", "row"], "--bits finds one step for each tensor"),
        (["compress", plain, out, "--distortion", "absolute"], "give --bits"),
        (["compress", plain, out, "--raw-dtype", "int8"], "bfloat16"),
        (["compress", plain, folder / "x.safetensors"], "x.rdo"),
        (["compress", plain, plain], ".rdo"),
        (["compress", plain, folder / "no" / "x.rdo"], "create it"),
        (["compress", plain, folder / "empty"], "both"),
        (["compress", folder / "model.bin", out], "pickle"),
        (["compress", folder / "empty", folder / "e"], "model.safetensors"),
        (["compress", folder, folder / "inside"], "lies in it"),
        (["inspect", folder / "model.bin"], "pickle"),
        (["fit", folder / "model.bin"], "pickle"),
        (["fit", plain, "--entropy-model", "laplac"], "did you mean 'laplace'"),
    ]
    for arguments, message in cases:
        assert cli.main([str(argument) for argument in arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("rdo: error: "), arguments
        assert message in error, arguments
        assert error.count("\n") == 1, arguments
    assert sorted(os.listdir(folder)) == ["empty", "model.bin", "model.safetensors"]
    for second in (["--relative-step", "1"], ["--bits", "2"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["compress", str(plain), str(out), "--step", "1", *second])
        assert caught.value.code == 2
        assert f"{second[0]}: not allowed with argument --step" in capsys.readouterr().err


def test_failures_are_exit_code_1_and_one_line(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain.parent
    good, damaged, nan = folder / "good.rdo", folder / "damaged.rdo", folder / "nan.safetensors"
    assert cli.main(["compress", str(plain), str(good)]) == 0
    content = good.read_bytes()
    damaged.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    save_file({"w": torch.full((2, 2), float("nan"))}, nan)
    before = sorted(os.listdir(folder))
    cases: list[tuple[list[object], str]] = [
        (["decompress", damaged, folder / "x.safetensors"], "tensor"),
        (["decompress", plain, folder / "x.safetensors"], "rdo compress"),
        (["decompress", good, folder / "x.safetensors", "--max-output-bytes", "99"], "--max-output-bytes"),
        (["compress", folder / "absent", folder / "x.rdo"], "absent"),
        (["compress", nan, folder / "x.rdo"], "w: 4 of 4"),
        (["inspect", folder / "absent"], "absent"),
        (["fit", nan], "w: 4 of 4"),
    ]
    capsys.readouterr()
    for arguments, message in cases:
        assert cli.main([str(argument) for argument in arguments]) == 1, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("rdo: error: "), arguments
        assert message in captured.err, arguments
        assert captured.err.count("\n") == 1, arguments
        assert not captured.out
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "index"),
        ("[]", "index"),
        ('{"weight_map": 3}', "index"),
        ('{"weight_map": {"w": "absent.safetensors"}}', "missing"),
        ('{"weight_map": {"w": "../model.safetensors"}}', "same directory"),
    ],
)
def test_a_bad_index_of_shards(sharded: Path, index: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    assert cli.main(["compress", str(sharded), str(sharded.with_name("out"))]) == 1
    assert message in capsys.readouterr().err
    assert os.listdir(sharded.parent) == ["model"]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compress", "decompress", "inspect", "fit"):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
        assert f"\n  rdo {command} " in capsys.readouterr().out


def test_verify_tells_sound_files_from_damaged_ones(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, damaged, sealed = (plain.with_name(f"{name}.rdo") for name in ("sound", "damaged", "sealed"))
    cli.main(["compress", str(plain), str(sound), "--lossless"])
    report = run_json_after_reset(capsys, "verify", sound)
    assert [(row["sound"], row["whole"], row["damaged"]) for row in report["files"]] == [(True, True, {})]
    content = sound.read_bytes()
    damaged.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    sealed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cli.main(["verify", str(sound), str(damaged), str(sealed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "wrong checksum of segment 0" in lines[1]
    assert [line.split(": ")[1].split(" ")[0] for line in lines if line.endswith("version 3)")] == [
        "sound",
        "DAMAGED",
        "DAMAGED",
    ]
    assert "not what was written" in lines[-2]


def test_lossless_files_come_back_to_the_bit(plain: Path, state: dict[str, Tensor]) -> None:
    out, back = plain.with_name("model.rdo"), plain.with_name("back.safetensors")
    assert cli.main(["compress", str(plain), str(out), "--lossless"]) == 0
    assert cli.main(["decompress", str(out), str(back)]) == 0
    loaded = load_file(back)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert out.stat().st_size < plain.stat().st_size
    assert cli.main(["compress", str(plain), str(out), "--force", "--lossless", "--coder", "rans"]) == 2
