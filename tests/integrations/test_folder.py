"""The entry in config.json, and folders on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rdo.integrations.folder import mark_config, unmark_config
from rdo_harness import cli

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(
    st.dictionaries(st.text().filter(lambda key: key != "quantization_config"), VALUES, min_size=1),
    st.sampled_from([None, 0, 2, 4]),
    st.booleans(),
    st.sampled_from(["", "\n", " \r\n"]),
)
def test_marking_a_config_and_back_changes_no_byte(
    config: dict[str, Any], indent: int | None, ascii_only: bool, end: str
) -> None:
    text = end + json.dumps(config, indent=indent, ensure_ascii=ascii_only) + end
    marked = mark_config(text)
    assert json.loads(marked) == {
        "quantization_config": {
            "quant_method": "rdo",
            "weights": "model.rdo",
            "load_with": "import rdo.integrations.transformers",
        },
        **config,
    }
    assert unmark_config(marked) == text
    assert mark_config(marked) == marked
    # what another program wrote anew has the same meaning
    assert json.loads(unmark_config(json.dumps(json.loads(marked)))) == config


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", "null", '{"quantization_config": {"quant_method": "gptq"}}', "\ufeff{}"]
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert mark_config(text) == text
    assert unmark_config(text) == text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    save_file({"weight": torch.randn(64, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes(b'{\r\n\t"model_type": "x",\r\n"name": "\xff\xc3\xa9"}')
    (folder / "tokenizer.json").write_bytes(b"\x00\xff")
    (folder / "part/config.json").write_text('{"model_type": "y"}')
    return folder


def test_a_folder_there_and_back(folder: Path, tmp_path: Path) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    assert cli.main(["compress", str(folder), str(small)]) == 0
    names = {str(path.relative_to(small)) for path in small.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "part/config.json", "model.rdo"}
    assert b'"quant_method": "rdo"' in (small / "config.json").read_bytes()
    assert cli.main(["decompress", str(small), str(back)]) == 0
    for name in ("config.json", "tokenizer.json", "part/config.json"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_plain_weights_that_would_be_loaded_instead_are_refused(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("old")
    assert cli.main(["compress", str(folder), str(out), "--force"]) == 2
    assert f"{name} would be loaded instead of model.rdo" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name]
