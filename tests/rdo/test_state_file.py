"""States of attachments as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdo.errors import CorruptCheckpointError
from rdo.state_file import load_state, save_state


def test_numbers_lists_and_tensors_come_back(tmp_path: Path) -> None:
    weights = torch.randn(3, 2).to(torch.bfloat16)
    state = {
        "step": 3,
        "deep": {"rates": [0.1, None], "masters": {"a.b": weights, "empty": torch.zeros(0)}},
        "none": {},
    }
    save_state(state, tmp_path / "state")
    found = load_state(tmp_path / "state")
    assert torch.equal(found["deep"]["masters"].pop("a.b"), weights)
    assert found["deep"]["masters"].pop("empty").shape == (0,)
    assert found == {"step": 3, "deep": {"rates": [0.1, None], "masters": {}}, "none": {}}


def test_damage_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save_state({"masters": torch.ones(100)}, file)
    data = bytearray(file.read_bytes())
    data[-200] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="state"):
        load_state(file)
