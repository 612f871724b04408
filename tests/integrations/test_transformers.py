"""Compressed folders through ``from_pretrained``; the reference is transformers on the decompressed folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    modeling_utils,
    pipeline,
)

import rdo.integrations.transformers
from rdo import load_compressed
from rdo.errors import CorruptCheckpointError, IntegrationError
from rdo.integrations.transformers import RdoConfig
from tests.integrations import hub_folders
from tests.integrations.hub_folders import IDS, MODELS, VOCABULARY, compress, decompress, gpt2, llama, logits, save

AUTO = {"bert": AutoModelForSequenceClassification}


def same(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def damage(file: Path, name: str) -> None:
    """Invert a byte in the middle of a tensor's stream."""
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    data[8 + length + (begin + end) // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", torch.float32])
@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_decoded_weights_to_the_bit(kind: str, dtype: Any, tmp_path: Path) -> None:
    original = MODELS[kind]()
    small = compress(save(original, tmp_path / "model"))
    assert not (small / "model.safetensors").exists()
    plain = decompress(small)
    assert (plain / "config.json").read_bytes() == (tmp_path / "model/config.json").read_bytes()
    load = AUTO.get(kind, AutoModelForCausalLM).from_pretrained
    model, expected = load(small, dtype=dtype), load(plain, dtype=dtype)
    assert same(model, expected)
    assert torch.equal(logits(model), logits(expected))
    assert not torch.equal(logits(expected), logits(original.to(expected.dtype)))
    assert model.dtype == {"auto": torch.float32, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert not model.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_weights_are_those_of_load_compressed(kind: str, tmp_path: Path) -> None:
    small = compress(save(MODELS[kind](), tmp_path / "model"), "--relative-step", "0.2", "--granularity", "row")
    model = AUTO.get(kind, AutoModelForCausalLM).from_pretrained(small, dtype=torch.float32)
    state = model.state_dict()
    decoded = load_compressed(small / "model.rdo")
    assert all(torch.equal(state[name], tensor) for name, tensor in decoded.items())
    assert set(state) - set(decoded) == ({"lm_head.weight"} if kind == "gpt2" else set())


def test_lossless_folders_give_the_original(tmp_path: Path) -> None:
    original = llama(dtype=torch.bfloat16).to(torch.bfloat16)
    small = compress(save(original, tmp_path / "model"), "--lossless")
    assert same(AutoModelForCausalLM.from_pretrained(small, dtype="auto"), original)


def test_shards_become_one_file(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path / "model", max_shard_size="60KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    small = compress(folder)
    assert sorted(path.name for path in small.iterdir()) == ["config.json", "generation_config.json", "model.rdo"]
    plain = decompress(small)
    assert same(AutoModelForCausalLM.from_pretrained(small), AutoModelForCausalLM.from_pretrained(plain))


def test_dtype_auto_asks_the_file_where_the_config_says_nothing(tmp_path: Path) -> None:
    small = compress(save(llama().to(torch.bfloat16), tmp_path / "model"))
    config = json.loads((small / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (small / "config.json").write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(small, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_device_maps(device_map: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = compress(save(gpt2(), tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(small, device_map=device_map)
    assert same(model, AutoModelForCausalLM.from_pretrained(small))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_weights_offloaded_to_the_disk(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = compress(save(llama(), tmp_path / "model"))
    device_map = {"model": "disk", "lm_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(small, device_map=device_map, offload_folder=tmp_path / "offload")
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(small)))


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(compress(save(gpt2(), tmp_path / "model")))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_new_head_is_initialised_and_reported(tmp_path: Path) -> None:
    """Also the keys that a model does not want."""
    small = compress(save(llama(), tmp_path / "model"))
    load: Any = AutoModelForSequenceClassification.from_pretrained
    torch.manual_seed(0)
    model, info = load(small, num_labels=3, output_loading_info=True)
    torch.manual_seed(0)
    expected, expected_info = load(decompress(small), num_labels=3, output_loading_info=True)
    assert {key: set(value) for key, value in info.items() if value} == {
        key: set(value) for key, value in expected_info.items() if value
    }
    assert set(info["missing_keys"]) == {"score.weight"}
    assert set(info["unexpected_keys"]) == {"lm_head.weight"}
    assert same(model, expected)
    assert 0.01 < model.score.weight.std() < 0.04


def test_transformers_warns_of_a_new_head(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    modeling_utils.logger.addHandler(handler := Recorder())
    try:
        AutoModelForSequenceClassification.from_pretrained(small)
    finally:
        modeling_utils.logger.removeHandler(handler)
    assert "score.weight" in handler.text
    assert "newly" in handler.text


class Recorder(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: Any) -> None:
        self.text += record.getMessage()


def test_the_base_model_of_a_folder(tmp_path: Path) -> None:
    small = compress(save(hub_folders.bert(), tmp_path / "model"))
    assert same(AutoModel.from_pretrained(small), AutoModel.from_pretrained(decompress(small)))


def test_a_mismatched_size_is_an_error_unless_ignored(tmp_path: Path) -> None:
    small = compress(save(hub_folders.bert(), tmp_path / "model"))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(small, num_labels=2)
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    _, info = AutoModelForSequenceClassification.from_pretrained(small, num_labels=2, **options)
    assert {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_a_loaded_model_is_an_ordinary_one(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(small)
    assert isinstance(model.config.quantization_config, RdoConfig)
    assert model.config.quantization_config.to_dict()["quant_method"] == "rdo"
    assert "model.rdo" in repr(model.config)
    assert all(parameter.requires_grad for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(input_ids=IDS, labels=IDS).loss
    before.backward()
    optimizer.step()
    assert model(input_ids=IDS, labels=IDS).loss < before
    assert model.half().dtype == torch.float16
    assert model.float().dtype == torch.float32


def test_save_pretrained_writes_a_plain_folder(tmp_path: Path) -> None:
    small = compress(save(gpt2(), tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(small)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    assert not (tmp_path / "saved/model.rdo").exists()
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), model)
    assert isinstance(model.config.quantization_config, RdoConfig)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "zeros", state_dict=state)
    assert not any(tensor.any() for tensor in load_file(tmp_path / "zeros/model.safetensors").values())


def test_generate_and_pipeline(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"<{index}>": index for index in range(VOCABULARY)}, unk_token="<2>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<2>", eos_token="<1>", pad_token="<3>")
    small = compress(save(llama(), tmp_path / "model"))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = AutoModelForCausalLM.from_pretrained(decompress(small)).generate(IDS, **options)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(small).generate(IDS, **options), expected)
    prompt = " ".join(f"<{index}>" for index in IDS[0].tolist())
    generator: Any = pipeline("text-generation", model=str(small), tokenizer=tokenizer, device="cpu")
    assert generator(prompt, return_tensors=True, **options)[0]["generated_token_ids"] == expected[0].tolist()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("deepseek", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("gpt2", "transformer.wte.weight"),
    ],
)
def test_damage_is_our_error(kind: str, name: str, tmp_path: Path) -> None:
    small = compress(save(MODELS[kind](), tmp_path / "model"))
    damage(small / "model.rdo", f"{name}::stream")
    with pytest.raises(CorruptCheckpointError, match=name.replace(".", r"\.")):
        AutoModelForCausalLM.from_pretrained(small)


def test_a_truncated_file_is_our_error(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    file = small / "model.rdo"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match=r"model\.rdo"):
        AutoModelForCausalLM.from_pretrained(small)


def test_a_repository_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small = compress(save(llama(), tmp_path / "model"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache/models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(small, repository / "snapshots" / commit)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    expected = AutoModelForCausalLM.from_pretrained(small)
    assert same(AutoModelForCausalLM.from_pretrained("someone/small", **options), expected)
    assert same(AutoModelForCausalLM.from_pretrained("someone/small", revision=commit, **options), expected)
    (repository / "snapshots" / commit / "model.rdo").unlink()
    with pytest.raises(OSError, match=r"someone/small|cached files"):
        AutoModelForCausalLM.from_pretrained("someone/small", **options)


def test_a_subfolder(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder=small.name)
    assert same(model, AutoModelForCausalLM.from_pretrained(small))


def test_plain_weights_are_loaded_where_there_are_any(tmp_path: Path) -> None:
    model = llama()
    folder = save(model, tmp_path / "model")
    (folder / "model.rdo").write_text("not looked at")
    assert same(AutoModelForCausalLM.from_pretrained(folder), model)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_without_weights_is_the_error_of_transformers(variant: str | None, tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    if variant is None:
        (small / "model.rdo").unlink()
    with pytest.raises(OSError, match="no file named") as caught:
        AutoModelForCausalLM.from_pretrained(small, variant=variant)
    assert ("fp16" in str(caught.value)) == (variant is not None)


def test_plain_folders_cannot_be_loaded_as_compressed_ones(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path / "model")
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=RdoConfig())


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    config = AutoConfig.from_pretrained(small)
    config.num_hidden_layers = 1
    model, info = AutoModelForCausalLM.from_pretrained(small, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(key.startswith("model.layers.1.") for key in info["unexpected_keys"])
    assert len(model.model.layers) == 1


@pytest.mark.parametrize("name", ["_get_resolved_checkpoint_files", "load_state_dict"])
@pytest.mark.parametrize("replacement", [None, lambda file: file])
def test_versions_without_what_is_extended_are_refused(
    name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_utils, name, replacement)
    with pytest.raises(IntegrationError, match=rf"transformers [45]\.\d+.* has no {name}.*rdo decompress"):
        rdo.integrations.transformers._extend()
    assert getattr(modeling_utils, name) is replacement
