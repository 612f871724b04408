"""Runs of the GPU command in asv's history, from the run on a CPU that is committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asv.results import Results

from asv_tools.figures import ROOT, every
from rdo_harness.gpu.history import VERSION, add_rows, workload

(RUN,) = (ROOT / "results" / "gpu").glob("cpu-x86_64-2026-11-24T0223.json")


def test_asv_reads_every_figure_of_a_run(tmp_path: Path) -> None:
    content = json.loads(RUN.read_text())
    path = add_rows(content, tmp_path)
    assert path == tmp_path / "cpu-x86_64" / "2207851b-existing-py3.11.json"
    results = Results.load(str(path), "cpu-x86_64")
    assert results.commit_hash == content["commit"]
    known = {figure.benchmark: figure for figure in every()}
    for benchmark in results.get_all_result_keys():
        assert known[benchmark].benchmark == benchmark
        assert results.benchmark_version[benchmark] == VERSION
    axes = results.get_result_params("gpu.Kernels.track_ratio")
    ratios = results.get_result_value("gpu.Kernels.track_ratio", axes)
    assert len(ratios) == len(content["timings"]) == 14
    place = axes[0].index('"AdamW + BackSlash / torch\'s fused AdamW"') * len(axes[1]) + axes[1].index("'5000-small'")
    (timing,) = [t for t in content["timings"] if t["operation"] == "AdamW + BackSlash" and t["tensors"] == 5000]
    assert ratios[place] == pytest.approx(timing["ratio"])
    (decoded, *_) = results.get_result_value("gpu.Decoding.track_nanoseconds", [["'rANS'", "'Exp-Golomb'"]])
    assert decoded == pytest.approx(1e9 / content["decoding"][0]["symbols_per_second"])


def test_parameters_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    path = add_rows(json.loads(RUN.read_text()), tmp_path)
    assert path is not None
    settings = {figure.settings for figure in every() if figure.benchmark == "gpu.Kernels.track_ratio"}
    axes = json.loads(path.read_text())["results"]["gpu.Kernels.track_ratio"][1]
    for operation in axes[0]:
        for name in axes[1]:
            assert (operation[1:-1], name[1:-1]) in settings


def test_a_run_of_an_installed_package_has_no_commit_to_stand_for(tmp_path: Path) -> None:
    content = {**json.loads(RUN.read_text()), "commit": "version 0.1.0"}
    assert add_rows(content, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_workloads_are_told_by_their_size() -> None:
    assert workload(124_318_464, 50) == "gpt2"
    assert workload(1000, 1) == "1000"
