"""RateCallback in the Trainer on two processes: replicas (DDP) and shards (FSDP2, on CPUs)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import launch, read


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trainer")
    launch("trainer_worker.py", out, counts=[2])
    return out


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("mode", ["size", "quality"])
def test_all_processes_end_with_the_model_that_the_folder_holds(kind: str, mode: str, results: Path) -> None:
    """With a quality each process measures data of its own, and the mean decides for all."""
    found = read(results, f"2-{kind}-{mode}")
    assert found["sharded"] == (kind == "fsdp")
    first, second = found["processes"]
    assert first == second
    assert first[1] == 40
    assert found["off"] == 0.0
    if mode == "size":
        assert 0.995 * 5.0 <= found["bits"] <= 5.0
    else:
        assert first[2] is not None
        assert 0.25 < found["loss"] <= 0.5
        assert found["bits"] < 4.0


def test_a_size_of_shards_is_resumed_to_the_bit(results: Path) -> None:
    """From step 26, when weights are rounded and each process holds the unrounded ones of its part."""
    assert read(results, "2-fsdp-size-again") == read(results, "2-fsdp-size")


def test_lambda_with_shards_writes_the_folder(results: Path) -> None:
    found = read(results, "2-fsdp-lam")
    assert found["sharded"]
    assert found["processes"][0] == found["processes"][1]
    assert 0.0 < found["off"] <= 2**-9 + 1e-6
