"""Exports to GGUF: the package gguf, which is llama.cpp's own, and transformers are the judges of what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import rdo
import rdo.integrations.transformers
from rdo.checkpoint import load_quantized
from rdo_harness import cli
from tests.integrations.hub_folders import IDS, VOCABULARY, compress, gpt2, llama, recompress_by_channels, save

gguf = pytest.importorskip("gguf")

from rdo.integrations.gguf_blocks import WIDTHS, pack  # noqa: E402

TEXT = [
    "The 42 wolves ran 1234 miles; they'd seen nothing.",
    "  spaces,\ttabs\n\nand lines",
    "naïve café: 日本",
    "don't",
]


def run_export(small: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Path, dict[str, Any]]:
    out = small.with_name(f"{small.name}.gguf")
    capsys.readouterr()
    assert cli.main(["export", str(small), str(out), "--format", "gguf", "--json", *options]) == 0
    return out, json.loads(capsys.readouterr().out)


def stored(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The type and the dequantised numbers of each tensor."""
    tensors = gguf.GGUFReader(file).tensors
    return {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in tensors}


def value(file: Path, key: str) -> Any:
    return gguf.GGUFReader(file).fields[key].contents()


@pytest.mark.parametrize("bits", sorted(WIDTHS))
def test_blocks_hold_every_symbol_of_their_width(bits: int) -> None:
    levels = 1 << bits
    generator = torch.Generator().manual_seed(bits)
    symbols = torch.randint(-levels // 2, levels // 2, (7, 96), generator=generator)
    symbols[0, :32], symbols[1, :32] = -levels // 2, levels // 2 - 1
    steps = torch.rand(7, generator=generator).to(torch.float16)
    packed = pack(symbols.numpy(), steps.numpy(), bits)
    found = gguf.dequantize(packed, gguf.GGMLQuantizationType[WIDTHS[bits]])
    assert np.array_equal(found, symbols.numpy() * steps.numpy().astype(np.float32)[:, None])


@pytest.mark.parametrize(("step", "kind"), [("2^-4", "Q4_0"), ("2^-6", "Q5_0"), ("2^-7", "Q8_0")])
def test_every_weight_is_the_decoded_one(
    step: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """float16 holds a power of two; rows of queries and keys are where llama.cpp wants them."""
    small = compress(save(llama(intermediate_size=160), tmp_path / "model"), "--step", step)
    out, report = run_export(small, capsys)
    assert report["plain"] == {}
    assert len(report["quantised"]) == 16
    assert report["largest_change"] == 0.0
    assert report["file_bytes"] == out.stat().st_size
    found, decoded = stored(out), rdo.load_compressed(small / "model.rdo")
    assert {found[name][0] for name in found if name.endswith("norm.weight")} == {"F32"}
    assert kind in {found[name][0] for name in found}
    for ours, theirs in {"mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}.items():
        weight = decoded[f"model.layers.1.{ours}.weight"]
        assert np.array_equal(found[f"blk.1.{theirs}.weight"][1], weight.numpy())
    queries = decoded["model.layers.0.self_attn.q_proj.weight"].reshape(4, 2, 8, 64)
    assert np.array_equal(found["blk.0.attn_q.weight"][1].reshape(4, 8, 2, 64), queries.transpose(1, 2).numpy())


def test_steps_of_rows_stay_and_columns_become_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The matrix of the outputs is square: as many columns as it has rows."""
    small = compress(save(llama(intermediate_size=160), tmp_path / "model"))
    outputs, values = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "ov")
    recompress_by_channels(small, {outputs: "columns", values: "rows"})
    out, report = run_export(small, capsys)
    assert report["plain"].keys() == {outputs}
    assert report["plain"][outputs].startswith("its columns have each a step")
    found, decoded = stored(out), rdo.load_compressed(small / "model.rdo")
    assert (found["blk.0.attn_output.weight"][0], found["blk.0.attn_v.weight"][0][0]) == ("F32", "Q")
    for name, theirs in {outputs: "blk.0.attn_output.weight", values: "blk.0.attn_v.weight"}.items():
        assert np.array_equal(found[theirs][1], decoded[name].numpy())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [("--relative-step", "0.3"), ("--relative-step", "0.1", "--granularity", "row")])
def test_transformers_runs_the_file(
    options: tuple[str, ...], tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps are rounded to float16, weights change by as much as is said, and logits hardly."""
    model = llama(intermediate_size=160, tie_word_embeddings=tied, rope_theta=5000.0)
    small = compress(save(model, tmp_path / "model"), *options)
    out, report = run_export(small, capsys)
    assert 0 < report["largest_change"] <= 2**-11
    expected = AutoModelForCausalLM.from_pretrained(small)
    found = AutoModelForCausalLM.from_pretrained(out.parent, gguf_file=out.name, dtype=torch.float32)
    assert found.config.rope_parameters["rope_theta"] == 5000.0
    for name, weight in expected.state_dict().items():
        change = (found.state_dict()[name] - weight).abs()
        assert (change <= report["largest_change"] * 1.001 * weight.abs()).all(), name
    with torch.no_grad():
        logits = expected(input_ids=IDS).logits
        torch.testing.assert_close(found(input_ids=IDS).logits, logits, rtol=0, atol=float(logits.abs().max()) / 200)
        assert float((found(input_ids=IDS.flip(1)).logits - logits).abs().max()) > float(logits.abs().max()) / 20


def test_what_does_not_fit_is_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that are no multiple of 32, a step that float16 does not have, tensors that were not quantised."""
    model = llama(intermediate_size=176).to(torch.bfloat16)
    small = compress(save(model, tmp_path / "model"), "--relative-step", "0.3")
    state = rdo.load_compressed(small / "model.rdo")
    state["model.layers.1.mlp.up_proj.weight"] *= 1e-7
    rdo.save_compressed(state, small / "model.rdo", quantizer=rdo.RelativeQuantizer(ratio=0.3))
    out, report = run_export(small, capsys)
    assert report["plain"].keys() == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }
    assert "no multiple of 32" in report["plain"]["model.layers.0.mlp.down_proj.weight"]
    assert "float16 has no number near" in report["plain"]["model.layers.1.mlp.up_proj.weight"]
    found, decoded = stored(out), rdo.load_compressed(small / "model.rdo")
    kind, values = found["blk.1.ffn_up.weight"]
    assert kind == "BF16"
    assert np.array_equal(values, decoded["model.layers.1.mlp.up_proj.weight"].float().numpy())


def test_too_many_levels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = compress(save(llama(intermediate_size=160), tmp_path / "model"), "--relative-step", "0.01")
    out = tmp_path / "out.gguf"
    assert cli.main(["export", str(small), str(out), "--format", "gguf"]) == 2
    symbols = load_quantized(small / "model.rdo")[0]["lm_head.weight"].symbols
    levels = int(symbols.max()) - int(symbols.min()) + 1
    assert f"tensor 'lm_head.weight' has {levels:,} levels" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".gguf", ".tmp")] == []
    assert cli.main(["export", str(small), str(out), "--format", "gguf", "--allow-plain"]) == 0
    assert np.array_equal(
        stored(out)["output.weight"][1], rdo.load_compressed(small / "model.rdo")["lm_head.weight"].numpy()
    )


def tokenizer_like_smollm(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits one by one, as SmolLM2's; learnt from a few words."""
    made = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(TEXT * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[1], eos_token=special[2])
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_the_tokenizer_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_like_smollm(tmp_path / "model")
    model = llama(intermediate_size=160, vocab_size=320)
    small = compress(save(model, tmp_path / "model"), "--step", "2^-4")
    out, _ = run_export(small, capsys)
    assert value(out, "tokenizer.ggml.model") == "gpt2"
    assert value(out, "tokenizer.ggml.pre") == "smollm"
    assert value(out, "tokenizer.ggml.bos_token_id") == tokenizer.bos_token_id
    assert value(out, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert value(out, "tokenizer.chat_template") == tokenizer.chat_template
    tokens = value(out, "tokenizer.ggml.tokens")
    assert len(tokens) == 320
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = value(out, "tokenizer.ggml.token_type")
    assert kinds[: len(tokenizer)] == [3, 3, 3] + [1] * (len(tokenizer) - 3)
    assert set(kinds[len(tokenizer) :]) == {5}
    again = AutoTokenizer.from_pretrained(out.parent, gguf_file=out.name)
    for text in TEXT:
        assert again(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]


def test_what_it_is_not_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = compress(save(gpt2(), tmp_path / "gpt2"), "--relative-step", "0.3")
    assert cli.main(["export", str(small), str(tmp_path / "out.gguf"), "--format", "gguf"]) == 2
    assert "only LlamaForCausalLM is exported, not GPT2LMHeadModel" in capsys.readouterr().err
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    for name, options, error in (("scaled", {"rope_parameters": scaled}, "rope_type 'linear'"), ("words", {}, "BPE")):
        folder = save(llama(**options), tmp_path / name)
        (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
        small = compress(folder, "--relative-step", "0.3")
        assert cli.main(["export", str(small), str(tmp_path / "out.gguf"), "--format", "gguf"]) == 2
        assert error in capsys.readouterr().err
    assert VOCABULARY == 131
    plain = save(llama(), tmp_path / "plain")
    small = compress(plain, "--relative-step", "0.3")
    assert cli.main(["export", str(small), str(tmp_path / "folder"), "--format", "gguf"]) == 2
    assert "ends in .gguf" in capsys.readouterr().err
