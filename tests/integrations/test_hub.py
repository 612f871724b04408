"""Compressed folders pushed to a hub and loaded from it by name, over HTTP, and then from the cache without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rdo import inspect_compressed
from rdo.errors import ConfigError
from rdo.integrations.hub import files_to_push, model_card
from rdo_harness import cli
from tests.integrations import fake_hub
from tests.integrations.fake_hub import FakeHub
from tests.integrations.hub_folders import bert, compress, llama, save
from tests.integrations.test_transformers import damage

LOAD = """
import sys, torch, rdo.integrations.transformers
from transformers import AutoModelForCausalLM

model, expected = (AutoModelForCausalLM.from_pretrained(where) for where in sys.argv[1:])
a, b = model.state_dict(), expected.state_dict()
print(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a))
"""


def run(hub: FakeHub, home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a hub, which huggingface_hub wants to know before it is imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub.address}
    environment |= {"HF_HOME": str(home), "HF_TOKEN": fake_hub.TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment |= more
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def push(hub: FakeHub, home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "-m", "rdo_harness.cli", "push", *arguments, **more)


def test_a_folder_goes_to_the_hub_and_back(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    (small / ".cache").mkdir()
    (small / ".cache/secret").write_text("not pushed")
    with fake_hub.running() as hub:
        done = push(hub, tmp_path / "pusher", small, "someone/small", "--base-model", "some/base", "--private")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.address}/someone/small/commit/{fake_hub.COMMIT}\n"
        assert "private" in (hub.made.get("visibility"), *[key for key, value in hub.made.items() if value is True])
        assert sorted(hub.files) == ["README.md", "config.json", "generation_config.json", "model.rdo"]
        assert hub.files["model.rdo"] == (small / "model.rdo").read_bytes()
        info = inspect_compressed(small / "model.rdo")
        assert hub.commits == [f"Push weights of {info.bits_per_parameter:.2f} bits per parameter"]
        card = hub.files["README.md"].decode()
        assert f"{info.file_bytes:,} bytes" in card
        assert 'AutoModelForCausalLM.from_pretrained("someone/small"' in card
        done = run(hub, tmp_path / "user", "-c", LOAD, "someone/small", small)
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
        refused = push(hub, tmp_path / "stranger", small, "someone/small", HF_TOKEN="hf_other")
        assert refused.returncode == 1
        assert "the hub did not take someone/small" in refused.stderr
        assert "hf auth login" in refused.stderr
    done = run(hub, tmp_path / "user", "-c", LOAD, "someone/small", small, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_card_of_the_original_is_kept(tmp_path: Path) -> None:
    small = compress(save(bert(), tmp_path / "model"))
    original = "---\nlicense: apache-2.0\ntags:\n- classification\n---\n# The original\n\nWhat it is for.\n"
    (small / "README.md").write_text(original)
    text = model_card(small, "someone/small", "some/base")
    card = ModelCard(text)
    assert card.data.to_dict()["license"] == "apache-2.0"
    assert card.data.tags == ["classification", "compressed", "rdo"]
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("some/base", "quantized")
    assert card.text.index("# small") < card.text.index("# The original")
    assert text.endswith("What it is for.\n")
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    info = inspect_compressed(small / "model.rdo")
    assert f"| bits per parameter, whole file | {info.bits_per_parameter:.3f} |" in text
    (small / "README.md").write_text(text)
    assert model_card(small, "someone/small", "some/base") == text, "a card made from our own is the same"


def test_what_is_not_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = save(llama(), tmp_path / "model")
    with pytest.raises(ConfigError, match="expected a compressed model folder"):
        files_to_push(plain)
    small = compress(plain)
    capsys.readouterr()
    assert cli.main(["push", str(small), "someone/small", "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == ["config.json", "generation_config.json", "model.rdo", "README.md"]
    assert shown["card"] == model_card(small, "someone/small")
    (small / "old.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"old\.safetensors: plain weights beside model\.rdo"):
        files_to_push(small)
    (small / "old.safetensors").unlink()
    damage(small / "model.rdo", "model.layers.1.mlp.up_proj.weight::stream")
    assert cli.main(["push", str(small), "someone/small"]) == 1
    assert "not pushed: " in capsys.readouterr().err
