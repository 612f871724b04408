"""Sharded training to a size against one process: FSDP2, HSDP, DDP, tensor parallelism, offloading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.launch import launch, read

SIZES = (2, 3)
KINDS = ("fsdp", "ddp", "hsdp", "rows", "offload", "resumed-10", "resumed-30")
TENSORS, BINS = 3, 2048


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded")
    launch("target_worker.py", out)
    return out


def differences(found: dict[str, list[float]], expected: dict[str, list[float]]) -> torch.Tensor:
    assert found.keys() == expected.keys()
    return torch.cat([torch.tensor(found[name]) - torch.tensor(expected[name]) for name in expected]).abs()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_one_process(size: int, kind: str, results: Path) -> None:
    """Tied, replicated and empty shards count once; a checkpoint of three processes, before and after the first
    rounding, resumes on two. Weights of about 0.1 agree to float32, none is a step of 0.03 away."""
    found, one = read(results, f"{size}-{kind}"), read(results, "1-one")
    assert float(differences(found["weights"], one["weights"]).max()) < 1e-6
    assert found["steps"] == pytest.approx(one["steps"], rel=1e-6)
    assert found["report"] == pytest.approx(one["report"], rel=1e-6)
    assert found["saved"] == one["saved"]


@pytest.mark.parametrize("size", SIZES)
def test_tensor_parallelism_differs_where_a_weight_lies_between_two_steps(size: int, results: Path) -> None:
    """Its matrix products are summed in another order, so a few weights are rounded the other way."""
    found, one = read(results, f"{size}-tp"), read(results, "1-one-untied")
    moved = differences(found["weights"], one["weights"]) > min(one["steps"]) / 2
    assert float(moved.float().mean()) < 0.01
    assert found["steps"] == pytest.approx(one["steps"], rel=1e-3)
    assert found["report"] == pytest.approx(one["report"], rel=1e-3)
    assert found["saved"][0] == pytest.approx(one["saved"][0], rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["fsdp", "tp", "hsdp"])
def test_the_file_has_the_size_and_holds_the_weights(size: int, kind: str, results: Path) -> None:
    found = read(results, f"{size}-{kind}")
    bits, file_bytes, parameters, _ = found["saved"]
    assert found["on disk"] == file_bytes
    assert 0.99 * 6.0 <= bits == 8 * file_bytes / parameters <= 6.0
    assert found["decoded"]


@pytest.mark.parametrize("size", SIZES)
def test_the_same_world_size_gives_the_same_bits(size: int, results: Path) -> None:
    assert read(results, f"{size}-again") == read(results, f"{size}-fsdp")


@pytest.mark.parametrize("size", SIZES)
def test_what_a_step_communicates(size: int, results: Path) -> None:
    """Sums of squared gradients while they are measured; every tenth step two lengths; every fourth the symbols."""
    sizes = read(results, f"{size}-counted")["sizes"]
    law = 3 * TENSORS
    assert sizes["0"] == sizes["10"] == [TENSORS, law, 2 * TENSORS, law]
    assert sizes["5"] == [TENSORS, law]
    assert set(sizes["19"]) == {TENSORS, law, BINS * TENSORS, 2}, "steps are chosen: two numbers check the grid"
    assert sizes["24"] == sizes["25"] == [law]
    assert sizes["27"] == [law, BINS * TENSORS]


@pytest.mark.parametrize("size", SIZES)
def test_all_processes_stop_together(size: int, results: Path) -> None:
    messages = read(results, f"{size}-refused")["messages"]
    assert len(messages) == size
    for message in messages:
        assert 'target_options={"compensated": False}' in message[0]
        assert "no room for the weights" in message[1]
    assert messages[0][2].startswith("FileNotFoundError")
    assert all(message[2].startswith("CheckpointError: rank 0 stopped: [Errno 2]") for message in messages[1:])


@pytest.mark.parametrize("size", SIZES)
def test_replicas_compensate_by_the_inputs_of_all(size: int, results: Path) -> None:
    """Data-parallel processes that see data of their own stay copies, and do what one does that sees all of it."""
    found, one = read(results, f"{size}-replicas"), read(results, "1-replicas")
    assert len(found["digests"]) == size
    assert len(set(found["digests"])) == 1
    assert found["steps"] == pytest.approx(one["steps"], rel=1e-3)
    changed = differences(found["masters"], one["masters"])
    assert float((changed > 1e-4).float().mean()) < 0.01
