from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rdo.entropy.shape import solve_shape
from rdo_harness import kernel_checks
from rdo_harness.gpu import command, rate


@pytest.fixture
def all_green(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves run elsewhere."""
    monkeypatch.setattr(kernel_checks, "run", lambda device, backend: {"moments_are_exact": ""})


def test_it_times_every_operation_and_writes_what_it_found(
    all_green: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, history = tmp_path / "gpu", tmp_path / "asv"
    sizes = ["--workloads", "1e4,2e4", "--repeats", "1", "--symbols", "1e6"]
    assert command.main(["--cpu", *sizes, "--out", str(out), "--history", str(history)]) == 0
    (path,) = out.iterdir()
    found = json.loads(path.read_text())
    assert [(t["operation"], t["weights"]) for t in found["timings"]] == [
        (name, size)
        for size in (10_000, 20_000)
        for name in (
            "moments",
            "gradient",
            "preconditioned proximal step",
            "rate step + moments",
            "AdamW + BackSlash",
            "keep + round",
            "quantise + histogram",
            "dequantise",
        )
    ]
    for timing in found["timings"]:
        assert timing["ratio"] == pytest.approx(timing["milliseconds"] / timing["reference_milliseconds"])
        assert timing["extra_bytes"] is None, "not measured on a CPU"
    assert [t["operation"] for t in found["decoding"]] == ["rANS", "Exp-Golomb"]
    assert found["checks"] == {"moments_are_exact": ""}
    assert len({len(line) for line in capsys.readouterr().out.splitlines() if "eager" in line}) == 1, "aligned"


def test_nothing_is_timed_while_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_checks, "run", lambda device, backend: {"moments_are_exact": "off by one"})
    assert command.main(["--cpu", "--workloads", "1e4", "--out", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    assert "failed  moments are exact: off by one" in capsys.readouterr().out


def test_an_unknown_workload_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--cpu", "--workloads", "lama"])
    assert "unknown workload 'lama'" in capsys.readouterr().err


def test_workloads_have_the_sizes_of_their_models() -> None:
    assert sum(rate.sizes_of("llama-3.2-1b")) == pytest.approx(1.236e9, rel=0.001)
    assert sum(rate.sizes_of("gpt2")) == pytest.approx(124.3e6, rel=0.001)
    assert len(rate.sizes_of("5000-small")) == 5000


def test_the_authors_step_is_their_formula() -> None:
    """w -= lambda nu / N sign(w) (|w| + 1)^(nu - 1), nu from the ratio of moments over all weights."""
    torch.manual_seed(0)
    weights = [torch.randn(20_000), 0.5 * torch.randn(30_000)]
    before = torch.cat(weights)
    rate.authors_step(weights, 100.0)
    ratio = before.double().square().mean() / before.double().abs().mean() ** 2
    shape = float(solve_shape(ratio))
    expected = before - 100.0 * shape / 50_000 * before.sign() * (before.abs() + 1) ** (shape - 1)
    torch.testing.assert_close(torch.cat(weights), expected, rtol=1e-6, atol=1e-7)
