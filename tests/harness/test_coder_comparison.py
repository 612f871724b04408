"""``rdo compare-coders`` on small files: its rows and tables, an arm that is wrong, a run that is repeated."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rdo.coders import make_coder
from rdo.errors import ConfigError
from rdo.quantizers import RelativeQuantizer
from rdo_harness import cli, coder_comparison
from rdo_harness.coder_comparison import Effort, compare, rows_path
from rdo_harness.coder_peers.base import (
    LENGTH_BYTES,
    PEERS,
    PER_TENSOR,
    WHOLE,
    Clock,
    Matrix,
    Peer,
    RoundTripError,
    Trip,
)
from rdo_harness.coder_peers.own import Own
from rdo_harness.coder_peers.zlib import Zlib
from rdo_harness.coder_points import Checkpoint, Target, mean_entropy, quantised, targets
from rdo_harness.coder_tables import derived, newest, write_tables
from rdo_harness.results import Row, read_rows


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(300, 64, generator=generator) * 0.04
    state = {
        "embedding.weight": embedding,
        "head.weight": embedding.clone(),  # tied, as some writers store it
        "layer.weight": (torch.randn(32, 65, generator=generator) ** 3).bfloat16(),
        "layer.bias": torch.randn(32, generator=generator),
    }
    save_file(state, tmp_path / "model.safetensors")
    return Checkpoint.parse(f"tiny={tmp_path / 'model.safetensors'}")


def entropy_bits(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum())


@dataclass(frozen=True)
class Counting(Peer):
    """Counts its trips; its times and sizes are made up."""

    name: ClassVar[str] = "counting"
    threaded: ClassVar[bool] = True
    packings: ClassVar[tuple[str, ...]] = ("large", "small")
    taken: ClassVar[list[tuple[str, int]]] = []
    wrong: bool = False

    @classmethod
    def arms(cls) -> list[Peer]:
        return [cls()]

    @property
    def label(self) -> str:
        return "counting"

    def trip(self, matrices: Sequence[Matrix], packing: str, threads: int) -> Trip:
        self.taken.append((packing, threads))
        if self.wrong and len(self.taken) > 3:
            raise RoundTripError("tensor 0 differs")
        seconds = [0.25, 0.5, 1.0, 0.125][len(self.taken) % 4]
        return Trip(100 if packing == "large" else 80, packing, Clock(seconds, seconds / 2), Clock(0.1, 0.1))


@pytest.fixture(autouse=True)
def forget_trips() -> None:
    Counting.taken.clear()


def run(checkpoint: Checkpoint, arms: Sequence[Peer], out: Path, effort: Effort | None = None) -> list[Row]:
    points = [Target(quantizer=RelativeQuantizer(ratio=0.7))]
    return compare([checkpoint], points, arms, effort or Effort(rounds=1), out, lambda line: None)


def test_rows_hold_entropy_and_bytes_of_the_same_symbols(checkpoint: Checkpoint, tmp_path: Path) -> None:
    golomb = {"name": "exp_golomb", "k": 0, "mapping": "rank"}
    [rans, eg, huffman] = run(checkpoint, [Own({"name": "rans"}), Own(golomb), Zlib(True)], tmp_path)
    quantizer = RelativeQuantizer(ratio=0.7)
    weights = checkpoint.weights()
    assert list(weights) == ["embedding.weight", "layer.weight"]
    symbols = [quantizer.quantize(weight).symbols.reshape(-1).numpy() for weight in weights.values()]
    for row in (rans, eg, huffman):
        assert row["symbols"] == 300 * 64 + 32 * 65
        assert row["entropy_bytes"] == pytest.approx(sum(map(entropy_bits, symbols)) / 8, rel=1e-12)
        assert row["relative_step"] == 0.7
        assert row["commit"]
        assert all(not isinstance(value, dict | list) for value in row.values())
    for row, coder in ((rans, make_coder("rans")), (eg, make_coder("exp_golomb", k=0, mapping="rank"))):
        streams = [coder.encode(part) for part in symbols]
        assert row["bytes"] == sum(stream.nbytes + LENGTH_BYTES + 8 * len(stream.lengths) for stream in streams)
    matrices = quantised(weights, quantizer)
    sizes = {packing: Zlib(True).trip(matrices, packing, 1).nbytes for packing in (PER_TENSOR, WHOLE)}
    assert huffman["bytes"] == min(sizes.values())
    assert huffman["form"] == f"{min(sizes, key=lambda packing: sizes[packing])}: int8"


def test_dequantised_and_original_weights_are_those_of_the_checkpoint(checkpoint: Checkpoint) -> None:
    weights = checkpoint.weights()
    quantizer = RelativeQuantizer(ratio=0.7)
    for matrix, weight in zip(quantised(weights, quantizer), weights.values(), strict=True):
        assert torch.equal(matrix.weights, weight.reshape(-1))
        restored = torch.from_numpy(matrix.symbols).float() * matrix.step
        assert torch.equal(restored, quantizer.quantize(weight).dequantize().reshape(-1))
        assert matrix.row_length == weight.shape[1]


@pytest.mark.parametrize("bits", [0.7, 2.0, 3.3])
def test_the_step_for_a_number_of_bits_is_found(checkpoint: Checkpoint, bits: float) -> None:
    weights = checkpoint.weights()
    quantizer = Target(bits=bits).find(weights)
    symbols = [m.symbols for m in quantised(weights, quantizer)]
    mean = sum(map(entropy_bits, symbols)) / sum(s.size for s in symbols)
    assert mean == pytest.approx(bits, abs=0.02)
    assert mean_entropy(weights, quantizer) == pytest.approx(mean, rel=1e-12)
    assert quantizer.config()["ratio"] == float(f"{quantizer.config()['ratio']:.3g}")


def test_bits_that_no_step_gives_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="--bits"):
        Target(bits=40.0).find(checkpoint.weights())
    assert [t.label for t in targets([1, 3.3], [0.5], [2**-8])] == [
        "3.3 bits",
        "1 bits",
        "step 0.5 rms",
        "step 0.00390625",
    ]


def test_turns_medians_and_the_smaller_packing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    [row] = run(checkpoint, [Counting()], tmp_path, Effort(rounds=3, seconds=100.0))
    # The first turn tries both packings; then the smaller one alone takes turns, with one thread and with two.
    small = [("small", 1), ("small", 2)]
    assert Counting.taken == [("large", 1), *small, *small, *small]
    assert row["bytes"] == 80
    assert row["rounds"] == 3
    # Trips 1 to 7 take 0.5, 1, 0.125, 0.25, 0.5, 1, 0.125 s. One thread: the 2nd, 4th, 6th; two: the 3rd, 5th, 7th.
    assert row["one_thread_encode_wall_seconds"] == 1.0
    assert row["one_thread_encode_cpu_seconds"] == 0.5
    assert row["all_threads_encode_wall_seconds"] == 0.125
    Counting.taken.clear()
    [row] = run(checkpoint, [Counting()], tmp_path / "short", Effort(rounds=3, seconds=0.6))
    assert row["rounds"] == 1


def test_an_arm_that_loses_symbols_gets_no_number_and_is_tried_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    told: list[str] = []
    arms = [Counting(wrong=True), Own({"name": "rans"})]
    points = [Target(quantizer=RelativeQuantizer(ratio=0.7))]
    effort = Effort(rounds=3, seconds=100.0)
    bad, good = compare([checkpoint], points, arms, effort, tmp_path, told.append)
    assert "tensor 0 differs" in bad["error"]
    assert not [name for name in bad if "bytes" in name or "seconds" in name]
    assert "error" not in good
    assert any("tensor 0 differs" in line for line in told)
    table, _ = write_tables(read_rows(rows_path(tmp_path)), tmp_path)
    assert "failed: tiny, step 0.7 rms, counting: RoundTripError: tensor 0 differs" in table.read_text()
    assert "| counting" not in table.read_text()
    Counting.taken.clear()
    compare([checkpoint], points, arms, effort, tmp_path, told.append)
    assert Counting.taken, "what failed is tried again"
    assert len(read_rows(rows_path(tmp_path))) == 3, "what did not is kept"


def test_a_run_continues_where_it_was_interrupted(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms: list[Peer] = [Own({"name": "rans"}), Zlib(True)]
    run(checkpoint, arms[:1], tmp_path)
    before = rows_path(tmp_path).read_bytes()
    run(checkpoint, arms, tmp_path)
    after = rows_path(tmp_path).read_bytes()
    assert after.startswith(before)
    assert [row["coder"] for row in read_rows(rows_path(tmp_path))] == ["rdo rans", "zlib -9 Huffman-only"]
    run(checkpoint, arms, tmp_path)
    assert rows_path(tmp_path).read_bytes() == after
    changed = replace(checkpoint, path=tmp_path / "other.safetensors")
    save_file({"w.weight": torch.randn(65, 64)}, changed.path)
    rows = run(changed, arms, tmp_path)
    assert len(read_rows(rows_path(tmp_path))) == 4
    assert [row["symbols"] for row in newest(read_rows(rows_path(tmp_path)))] == [65 * 64] * 2
    assert {row["sha256"] for row in rows} == {changed.sha256()}


def test_slow_arms_get_a_part_and_are_compared_with_its_entropy(checkpoint: Checkpoint, tmp_path: Path) -> None:
    effort = Effort(rounds=1, most_slow_symbols=4000)
    fast, slow = run(checkpoint, [Zlib(True), Zlib()], tmp_path, effort)
    assert fast["symbols"] == 21280
    rows = 57, 6  # a share of 4000 / 21280, rounded up
    assert slow["symbols"] == rows[0] * 64 + rows[1] * 65
    embedding, layer = (m.symbols for m in quantised(checkpoint.weights(), RelativeQuantizer(ratio=0.7)))
    parts = [
        embedding[(300 - rows[0]) // 2 * 64 :][: rows[0] * 64],
        layer[(32 - rows[1]) // 2 * 65 :][: rows[1] * 65],
    ]
    assert slow["entropy_bytes"] == pytest.approx(sum(map(entropy_bits, parts)) / 8, rel=1e-12)


def test_the_tables_numbers_follow_from_the_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run(checkpoint, [Own({"name": "rans"}), Own({"name": "huffman"}), Zlib(True)], tmp_path)
    rows = read_rows(rows_path(tmp_path))
    text = write_tables(rows, tmp_path)[0].read_text()
    sections = {part.splitlines()[0]: part for part in text.split("### ")[1:]}
    assert list(sections) == ["Over the order-0 entropy", "Speed", "tiny, step 0.7 rms"]
    cells = {
        title: {
            line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
            for line in part.splitlines()
            if "|" in line
        }
        for title, part in sections.items()
    }
    for row in rows:
        over = 100 * (row["bytes"] / row["entropy_bytes"] - 1)
        assert cells["Over the order-0 entropy"][row["coder"]] == [f"{over:+.2f} %"]
        speed = row["symbols"] / row["one_thread_decode_cpu_seconds"] / 1e6
        assert float(cells["Speed"][row["coder"]][1]) == pytest.approx(speed, rel=0.01)
        shown = cells["tiny, step 0.7 rms"][row["coder"]]
        assert shown[:3] == [f"{row['symbols']:,}", f"{row['bytes']:,}", f"{8 * row['bytes'] / row['symbols']:.4f}"]
    order = [name for name in cells["Over the order-0 entropy"] if name in {row["coder"] for row in rows}]
    assert order == [row["coder"] for row in sorted(rows, key=lambda row: row["bytes"])]
    with (tmp_path / "tables" / "coders.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["over_entropy_percent"]) for line in lines] == [
        derived(row)["over_entropy_percent"] for row in rows
    ]


def test_floating_point_numbers_are_not_compared_with_the_entropy_of_symbols(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    [row] = run(checkpoint, [Own({"name": "rans"})], tmp_path)
    other = {**row, "coder": "floats", "footing": "original weights as float32", "bytes": 4 * row["symbols"]}
    assert derived(row)["over_entropy_percent"] is not None
    assert derived(other)["over_entropy_percent"] is None
    text = write_tables([row, other], tmp_path)[0].read_text()
    assert text.count("| floats") == 1
    assert re.search(r"\| floats +\| 32\.00 ", text.split("### Floating-point weights")[1])


def test_the_command_end_to_end(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PEERS.get("zstd"), "module", "a_module_that_is_not_there")
    out = tmp_path / "out"
    command = ["compare-coders", f"tiny={checkpoint.path}", "--quick", "--bits", "1,2", "--out", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "not compared: zstd cannot be imported" in printed.err
    assert "pip install 'zstandard'" in printed.err
    rows = read_rows(rows_path(out))
    expected = {arm.label for arm in [*Own.arms(), *Zlib.arms()]} | {"xz -9", "xz -9 delta", "xz -9 lc0-pb0"}
    assert expected <= {row["coder"] for row in rows}
    assert {row["target"] for row in rows} == {"1 bits", "2 bits"}
    assert not [row for row in rows if "error" in row]
    text = (out / "tables" / "coders.md").read_text()
    assert "not measured, because not installed or not asked for:" in text
    assert "zstd" in text.split("not asked for:")[1].splitlines()[0]
    assert cli.main(command) == 0
    assert len(read_rows(rows_path(out))) == len(rows)
    (out / "tables" / "coders.md").unlink()
    assert cli.main(["compare-coders", "--out", str(out)]) == 0
    assert (out / "tables" / "coders.md").read_text() == text


def test_speed_only_reports_no_size(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = str(checkpoint.path)
    command = ["compare-coders", source, "--quick", "--coders", "rdo rans,zlib", "--speed-only", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    rows = read_rows(rows_path(tmp_path))
    assert {row["coder"] for row in rows} == {"rdo rans", "zlib -9", "zlib -9 Huffman-only"}
    assert {row["checkpoint"] for row in rows} == {"model"}
    assert all(row["bytes"] is None and row["entropy_bytes"] is None for row in rows)
    text = (tmp_path / "tables" / "coders.md").read_text()
    assert "Over the order-0 entropy" not in text
    assert "%" not in text
    lines = (tmp_path / "tables" / "coders.csv").read_text().splitlines()
    assert all(json.dumps(row["bytes"]) == "null" for row in rows)
    assert len(lines) == 1 + len(rows)


def test_misuse(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["no-such-file"], "no such file"),
        ([f"a={checkpoint.path}", "--coders", "rdo rens"], "did you mean 'rdo rans'"),
        ([f"a={checkpoint.path}", "--rounds", "0"], "1 or more"),
        ([f"a={checkpoint.path}", "--most-symbols", "0"], "1 or more"),
        ([f"a={checkpoint.path}", "--bits", "two"], "positive number"),
        ([], "name a checkpoint"),
    ):
        assert cli.main(["compare-coders", *arguments, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
    save_file({"bias": torch.zeros(4)}, tmp_path / "vectors.safetensors")
    with pytest.raises(ConfigError, match="no floating-point matrices"):
        Checkpoint("v", tmp_path / "vectors.safetensors").weights()


def test_a_key_tells_apart_what_gives_another_row(checkpoint: Checkpoint) -> None:
    cell = coder_comparison.Cell("a", "0", "1 bits", RelativeQuantizer(ratio=0.7), Zlib(), Effort(), 1)
    others = [
        replace(cell, checkpoint="b"),
        replace(cell, sha256="1"),
        replace(cell, quantizer=RelativeQuantizer(ratio=0.8)),
        replace(cell, arm=Zlib(True)),
        replace(cell, effort=Effort(most_symbols=5)),
        replace(cell, effort=Effort(speed_only=True)),
        replace(cell, threads=2),
    ]
    assert len({c.key for c in [cell, *others]}) == 8
    assert replace(cell, effort=Effort(rounds=9)).key == cell.key
