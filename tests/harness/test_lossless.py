"""Lossless methods keep the weights as bfloat16, all of them, in a file of which every byte counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rdo.errors import ConfigError
from rdo_harness import figures, report
from rdo_harness import run as runner
from rdo_harness.coder_peers.zstd import Zstd as ZstdCoder
from rdo_harness.measure import CODED_SIZES
from rdo_harness.methods.base import Context
from rdo_harness.methods.lossless import Lossless
from rdo_harness.methods.zipnn import ZipNN
from rdo_harness.methods.zstd import Zstd
from rdo_harness.peers.sample import samples
from rdo_harness.suite import Suite
from tests.harness.test_run import Recorder

INSTALLED = [
    pytest.param(kind, marks=pytest.mark.skipif(kind.coder.missing() is not None, reason="not installed"))
    for kind in (ZipNN, Zstd)
]


@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.parametrize("which", ["bert-small", "gpt-small"])
def test_the_file_gives_back_every_weight_as_bfloat16(kind: type[Lossless], which: str, tmp_path: Path) -> None:
    architecture, prepared = next(sample for sample in samples() if sample[0].name == which)
    model, path = architecture.build(0, prepared.task), tmp_path / "model.rdo"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    context = Context(architecture, prepared, 4, 0, tmp_path)
    (point,) = kind().points()
    row = kind().apply(model, point, context, path)
    found = kind().read(path)
    assert found.weights.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(found.weights[name].float(), tensor.to(torch.bfloat16).float())
        assert torch.equal(model.state_dict()[name], tensor)
    sizes, parameters = found.sizes(), sum(p.numel() for p in model.parameters())
    assert sizes["file_bytes"] == path.stat().st_size == row["native_bytes"]
    assert sizes["coded_parameters"] == parameters  # tied embeddings once
    assert 9 < 8 * sizes["file_bytes"] / parameters < 16
    assert all(sizes[column] is None for column in CODED_SIZES)


@pytest.mark.skipif(ZstdCoder.missing() is not None, reason="not installed")
def test_a_suite_evaluates_the_bfloat16_weights_and_a_missing_library_stops_nothing(
    tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZipNN.coder, "module", "a_module_that_is_not_there")
    (part,) = tiny_suite.parts
    suite = replace(tiny_suite, parts=(replace(part, methods=(part.methods[0], ZipNN(), Zstd(level=3))),))
    rows = runner.run(suite, tmp_path, Recorder())
    assert [row["method"] for row in rows if "error" in row] == ["zipnn"]
    assert "pip install 'zipnn', or with the other coders: pip install 'backslash-rdo[peers]'" in rows[4]["error"]
    row = rows[5]
    assert (row["dtype"], row["level"], row["rans_bits_per_parameter"]) == ("bfloat16", 3, None)
    assert row["peer_versions"].startswith("zstandard ")
    assert row["cross_entropy"] != row["uncompressed_cross_entropy"]
    assert row["cross_entropy"] == pytest.approx(row["uncompressed_cross_entropy"], rel=0.01)
    built = report.build(rows, tmp_path, "tiny")
    summary = {line[0]: line for line in built.summaries[0].rows}
    assert f"{row['file_bits_per_parameter']:.2f}" in summary["zstd"]


def test_lossless_methods_are_named_in_the_figure_and_not_drawn() -> None:
    def row(label: str, bits: float, **more: Any) -> dict[str, Any]:
        common = {
            "task": "t",
            "architecture": "a",
            "seed": 0,
            "metric_name": "accuracy",
            "metric": 0.9,
            "test_items": 9,
        }
        size = {"best_coder_bits_per_parameter": bits, "cross_entropy": 0.1 + 1 / bits, "step": bits}
        normal = {"lam": None, "uncompressed_cross_entropy": 0.1, "uncompressed_metric": 0.9}
        return {**common, "label": label, **size, **normal, **more}

    rows = [row("anchor", bits) for bits in (2.0, 3.0, 4.0)] + [row("zstd", 11.26, dtype="bfloat16", step=None)]
    for panel in figures.rate_distortion(pd.DataFrame(rows), ["anchor", "zstd"]).axes:
        labels = [line.get_label() for line in panel.get_lines()]
        assert "uncompressed, normal training" in labels
        assert "zstd" not in labels
        assert [text.get_text() for text in panel.texts] == ["zstd: 11.3 bits"]
        assert panel.get_xlim()[1] < 5
    alone = figures.rate_distortion(pd.DataFrame(rows[3:]), ["zstd"])  # `rdo run --methods zstd`
    assert [[text.get_text() for text in panel.texts] for panel in alone.axes] == [["zstd: 11.3 bits"]] * 2
    assert alone.axes[0].get_title() == "a on t, 1 seed: lower left is better"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="give no quantisation steps"):
        Zstd(steps=("2^-5",))
    with pytest.raises(ConfigError, match="zstd has levels from 1 to 22, got 23"):
        Zstd(level=23)
