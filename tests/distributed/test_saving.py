"""Files that several processes write together: the same as that of one, to the byte, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import launch, read

SIZES = (2, 3)
OPTIONS = ("uniform", "rows", "lossless", "narrow")
KINDS = [*[("fsdp", option) for option in OPTIONS], ("tp", "uniform"), ("hsdp", "uniform"), ("offload", "uniform")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saving")
    launch("saving_worker.py", out)
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "option"), KINDS)
def test_the_file_is_that_of_one_process(size: int, kind: str, option: str, results: Path) -> None:
    found, one = read(results, f"{size}-{kind}-{option}"), read(results, f"1-one-{option}")
    assert found["digest"] == one["digest"]
    assert found["sound"]
    assert found["bytes"][0] == found["bytes"][1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "option"), KINDS)
def test_every_process_codes_a_share_and_knows_the_whole(size: int, kind: str, option: str, results: Path) -> None:
    """Each tensor is coded by one process, twice: for its size alone, and for the file."""
    found, one = read(results, f"{size}-{kind}-{option}"), read(results, f"1-one-{option}")
    assert sorted(name for names in found["asked"] for name in names) == sorted(one["asked"][0])
    assert all(found["asked"])
    assert {info for infos in [*found["infos"], *one["infos"]] for info in infos} == {one["infos"][0][0]}


@pytest.mark.parametrize("size", SIZES)
def test_what_fails_on_one_process_fails_on_all_and_leaves_the_old_file(size: int, results: Path) -> None:
    found = read(results, f"{size}-refused")
    no_folder, full_disk, names, not_finite = zip(*found["messages"], strict=True)
    assert no_folder[0].startswith("FileNotFoundError: ")
    assert full_disk[0].startswith("CheckpointError: cannot write ")
    assert "File too large" in full_disk[0]
    for first, *others in (no_folder, full_disk):
        assert set(others) == {f"CheckpointError: rank 0 stopped: {first.partition(': ')[2]}"}
    assert all(message.startswith("ConfigError: processes have different tensors") for message in names)
    assert sum(message.startswith("NonFiniteWeightsError: inner.0.weight: ") for message in not_finite) == 1
    assert sum("stopped: inner.0.weight: " in message for message in not_finite) == size - 1
    assert (found["kept"], found["left"]) == ("old", [])
