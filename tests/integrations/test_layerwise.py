"""Models whose layers are decoded when they run: the reference is the same folder, decoded as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma3ForCausalLM, Gemma3TextConfig

from rdo.errors import CheckpointError, ConfigError, CorruptCheckpointError
from rdo.integrations import layerwise
from rdo.integrations.decoded_layer import DecodedLayer
from tests.integrations.hub_folders import IDS, MODELS, VOCABULARY, compress, llama, save
from tests.integrations.test_transformers import damage
from tests.integrations.test_transformers_processes import python


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def gemma3() -> Any:
    """Layers of two kinds, sliding and full attention; tied embeddings."""
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3}
    config = Gemma3TextConfig(
        **sizes, **tokens, num_key_value_heads=2, vocab_size=VOCABULARY, layer_types=kinds, sliding_window=4
    )
    return Gemma3ForCausalLM(config)


KINDS = {**MODELS, "gemma3": gemma3}
AUTO = {"bert": AutoModelForSequenceClassification}


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model_to_the_bit(kind: str, prefetch: bool, tmp_path: Path) -> None:
    small = str(compress(save(KINDS[kind](), tmp_path / "model")))
    model_class = AUTO.get(kind, AutoModelForCausalLM)
    for dtype in (torch.float32, torch.bfloat16):
        whole = model_class.from_pretrained(small, dtype=dtype)
        model = layerwise.from_pretrained(model_class, small, dtype=dtype, prefetch=prefetch)
        expected = whole(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, expected)
        assert torch.equal(model(input_ids=IDS).logits, expected), "the second time, too"
        assert sum(parameter.is_meta for parameter in model.parameters()) >= 10


@pytest.mark.parametrize("kind", ["llama", "gpt2", "deepseek", "gemma3"])
def test_generation(kind: str, tmp_path: Path) -> None:
    small = str(compress(save(KINDS[kind](), tmp_path / "model")))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True}
    found = layerwise.from_pretrained(AutoModelForCausalLM, small).generate(IDS, **options)
    expected = AutoModelForCausalLM.from_pretrained(small).generate(IDS, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = str(compress(save(gemma3(), tmp_path / "model")))
    model = layerwise.from_pretrained(AutoModelForCausalLM, small)
    seen: list[list[bool]] = []
    layers = list(model.model.layers)

    def look(*_: Any) -> None:
        seen.append([not layer.mlp.up_proj.weight.is_meta for layer in layers])

    for layer in layers:
        layer.mlp.register_forward_pre_hook(look)
    model(input_ids=IDS)
    assert seen == [[True, False, False], [False, True, False], [False, False, True]]
    assert all(layer.mlp.up_proj.weight.is_meta for layer in layers)
    assert not model.lm_head.weight.is_meta
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_next_layer_is_decoded_ahead_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = str(compress(save(gemma3(), tmp_path / "model")))
    model = layerwise.from_pretrained(AutoModelForCausalLM, small, prefetch=True)
    decoded: list[str] = []
    decode = DecodedLayer.decode
    monkeypatch.setattr(DecodedLayer, "decode", lambda self: decoded.append(self.name) or decode(self))
    for _ in range(2):
        model(input_ids=IDS)
    model.model.layers[1](torch.zeros(1, 3, 48), **_attention(model))  # out of turn
    vars(model)["_rdo_layerwise"].close()
    order = [int(name.rsplit(".", 1)[1]) for name in decoded]
    assert order[:6] == [0, 1, 2, 0, 1, 2]
    assert sorted(order[6:]) == [0, 1, 2]


def _attention(model: Any) -> dict[str, Any]:
    positions = torch.arange(3)[None]
    rotary = model.model.rotary_emb(torch.zeros(1, 3, 48), positions, "full_attention")
    return {"position_embeddings": rotary, "attention_mask": None, "position_ids": positions}


def test_a_layer_is_dropped_after_an_error(tmp_path: Path) -> None:
    small = str(compress(save(llama(), tmp_path / "model")))
    model = layerwise.from_pretrained(AutoModelForCausalLM, small)
    hook = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=IDS)
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())
    hook.remove()
    expected = AutoModelForCausalLM.from_pretrained(small)(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    plain = save(llama(), tmp_path / "model")
    small = compress(plain)
    with pytest.raises(ConfigError, match="takes a compressed folder"):
        layerwise.from_pretrained(AutoModelForCausalLM, str(plain))
    with pytest.raises(ConfigError, match="one device"):
        layerwise.from_pretrained(AutoModelForCausalLM, str(small), device_map="auto")
    model = layerwise.from_pretrained(AutoModelForCausalLM, str(small))
    with pytest.raises(ConfigError, match="rdo decompress"):
        model.save_pretrained(tmp_path / "saved")
    with torch.enable_grad(), pytest.raises(ConfigError, match=r"torch\.no_grad"):
        model(input_ids=IDS)
    assert not (tmp_path / "saved").exists()
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    with pytest.raises(CheckpointError, match=r"a parameter of size \[.*\] for 'model.layers.0.mlp"):
        layerwise.from_pretrained(AutoModelForCausalLM, str(small))


def test_damage_shows_while_loading(tmp_path: Path) -> None:
    small = compress(save(llama(), tmp_path / "model"))
    damage(small / "model.rdo", "model.layers.1.mlp.up_proj.weight::stream")
    with pytest.raises(CorruptCheckpointError, match=r"model\.layers\.1\.mlp\.up_proj"):
        layerwise.from_pretrained(AutoModelForCausalLM, str(small))


PEAK = """
import sys, torch
from rdo.integrations import layerwise
from transformers import AutoModelForCausalLM

def status(key):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))

small, large = sys.argv[1:]
torch.set_grad_enabled(False)
ids = torch.tensor([[5, 17, 130, 2, 77, 41, 9]])
load = lambda folder: layerwise.from_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32)
load(small)(input_ids=ids)  # compiles the loops and fills the caches of transformers
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
before = status("VmRSS")
model = load(large)
model(input_ids=ids)
print(status("VmHWM") - before, sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read as Linux tells it")
def test_the_model_is_never_in_memory(tmp_path: Path) -> None:
    options = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 14, "vocab_size": 256}
    large = compress(save(llama(**options), tmp_path / "large"), "--step", "2^-4")
    small = compress(save(llama(), tmp_path / "small"))
    run = python(PEAK, small, large)
    assert run.returncode == 0, run.stderr
    peak, model = map(int, run.stdout.split())
    layer, outside = 4 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024), 4 * 2 * 256 * 512
    assert model > 120e6
    assert peak < outside + layer + 48e6 < 0.5 * model
