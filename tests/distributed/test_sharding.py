"""Sharded training against one process: FSDP2, HSDP, DDP, tensor parallelism, offloading; 2 and 3 gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import launch, read

SIZES = (2, 3)
FIXED = ("ddp", "hsdp", "offload", "rows")
KINDS = [f"{kind}-{name}" for kind in ("fsdp", "tp") for name in ("gradient", "decoupled", "proximal")]
KINDS += [f"{kind}-gradient" for kind in FIXED]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded")
    launch("worker.py", out)
    return out


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 2e-6) -> None:
    """Weights to a tolerance in units of a learning rate of 0.02, rates to a millionth."""
    assert found["weights"].keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        torch.testing.assert_close(
            torch.tensor(found["weights"][name]), torch.tensor(values), rtol=0.0, atol=tolerance, msg=name
        )
    assert found["report"] == pytest.approx(expected["report"], rel=1e-6)
    assert found["rates"][0] == pytest.approx(expected["rates"][0], rel=1e-6)
    assert found["rates"][1] == pytest.approx(expected["rates"][1], rel=1e-3)  # a weight may round the other way


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_one_process(size: int, kind: str, results: Path) -> None:
    """Replicated weights, tensors of HSDP and empty shards included: each weight counts once."""
    one = read(results, f"1-one-{kind.partition('-')[2]}")
    assert one["report"][1] == 6 * 12 + 12 * 12 + 12 * 2
    assert_same(read(results, f"{size}-{kind}"), one)


@pytest.mark.parametrize("size", SIZES)
def test_the_same_world_size_gives_the_same_bits(size: int, results: Path) -> None:
    assert read(results, f"{size}-again") == read(results, f"{size}-fsdp-proximal")


@pytest.mark.parametrize("size", SIZES)
def test_a_distributed_checkpoint_resumes_at_another_world_size(size: int, results: Path) -> None:
    """Saved by three processes midway through a warm-up of lambda, resumed by two and by three."""
    assert read(results, "3-saved")["report"][0] == 2
    assert_same(read(results, f"{size}-resumed"), read(results, "1-one-resumed"))


@pytest.mark.parametrize("size", SIZES)
def test_a_step_takes_one_all_reduce(size: int, results: Path) -> None:
    """Of three numbers, or three for each of the three covered tensors."""
    assert read(results, f"{size}-counted")["sizes"] == {"global": [3], "tensor": [9]}


@pytest.mark.parametrize("size", SIZES)
def test_all_processes_stop_together(size: int, results: Path) -> None:
    messages = read(results, f"{size}-fails")["messages"]
    assert len(messages) == size
    assert messages[0][0].startswith("up.weight: weights are NaN")
    assert all("another rank: weights are NaN or infinite at step 0" in message[0] for message in messages[1:])
    assert all("processes cover different parameters" in message[1] for message in messages)
    assert all("RateAdamW takes neither sharded" in message[2] for message in messages)
