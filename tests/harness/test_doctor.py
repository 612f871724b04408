"""``rdo doctor``."""

from __future__ import annotations

import json

import pytest

from rdo_harness import cli, cli_doctor


def test_a_sound_installation_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert found["healthy"]
    assert all(states[name] == "works" for name in ("CPU kernels", "training step", "compressed file", "transformers"))
    assert found["versions"]["torch"].startswith("2.")


def test_what_is_broken_and_what_is_absent_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(cli_doctor, "_CHECKS", {"loops": fails, "GPU": lambda: None, "files": lambda: "fine"})
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-5:-2]] == [
        ["loops", "broken", "RuntimeError:", "no", "such", "instruction"],
        ["GPU", "absent", "not", "here"],
        ["files", "works", "fine"],
    ]
    assert lines[-1] == "1 broken"
