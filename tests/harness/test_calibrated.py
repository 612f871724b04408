"""``rdo compress --calibration``: models of transformers rounded to a size by what they do with a text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import rdo
from rdo.checkpoint import open_compressed
from rdo_harness import cli

WORDS = [f"w{number}" for number in range(40)]


def sentences(count: int, seed: int) -> list[str]:
    """Chains in which each word has three successors."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        word, line = generator.randrange(40), []
        for _ in range(20):
            line.append(WORDS[word])
            word = (word * 7 + generator.choice((1, 2, 5))) % 40
        lines.append(" ".join(line))
    return lines


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def loss_of(model: PreTrainedModel, lines: list[str]) -> Tensor:
    ids = torch.tensor(tokenizer()(lines)["input_ids"])
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def loss_of_windows(model: PreTrainedModel) -> float:
    """Of running text that was not calibrated with, cut as ``rdo compress`` does: pieces begin anywhere in a chain."""
    ids = torch.tensor(tokenizer()("\n".join(sentences(200, 10_002)))["input_ids"])
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    with torch.no_grad():
        return float(model(input_ids=windows, labels=windows).loss)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that knows the chains: tied embeddings, transposed matrices, bfloat16 on disk."""
    folder = tmp_path_factory.mktemp("calibrated") / "gpt2"
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 42}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss_of(model, sentences(16, step)).backward()
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    path.write_text("\n".join(sentences(300, 10_001)), encoding="utf-8")
    return path


def compressed(source: Path, out: Path, *options: str, bits: float) -> dict[str, Tensor]:
    assert cli.main(["compress", str(source), str(out), "--bits", str(bits), "--raw-dtype", "bfloat16", *options]) == 0
    info = rdo.inspect_compressed(out / "model.rdo")
    assert 0.995 * bits <= info.bits_per_parameter <= bits
    return rdo.load_compressed(out / "model.rdo")


@pytest.mark.parametrize("coder", ["rans", "rans,context"])
def test_a_language_model_loses_less_than_without_calibration(
    language_model: Path, text: Path, tmp_path: Path, coder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for name, calibrated in (("calibrated", ("--calibration", str(text))), ("alone", ())):
        options = (*calibrated, "--coder", coder)
        state = compressed(language_model, tmp_path / name, *options, bits=3.5)
        assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
        assert cli.main(["decompress", str(tmp_path / name), str(tmp_path / f"{name}-plain")]) == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-plain", dtype=torch.float32)
        assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight), "still tied"
        losses[name] = float(loss_of(model.eval(), sentences(64, 10_002)).detach())
    original = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    best = float(loss_of(original, sentences(64, 10_002)).detach())
    assert losses["calibrated"] - best < 0.5 * (losses["alone"] - best)
    with open_compressed(tmp_path / "calibrated/model.rdo") as file:
        own = [f"{tensor.steps:,} {tensor.channels}" for tensor in file.info.tensors if tensor.channels]
    assert bool(own) == ("context" in coder), "steps of rows or columns"
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "calibrated")]) == 0
    shown = capsys.readouterr().out
    assert all(steps in shown for steps in own)
    assert ("rows" in shown or "columns" in shown) == bool(own)


def test_the_smallest_file_that_a_loss_allows(language_model: Path, text: Path, tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    best, sizes = loss_of_windows(original), []
    for share in (0.02, 0.2):
        out = tmp_path / str(share)
        options = ["--max-loss", f"{100 * share:g}%", "--calibration", str(text)]
        assert cli.main(["compress", str(language_model), str(out), *options]) == 0
        state = rdo.load_compressed(out / "model.rdo")
        model = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
        model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
        model.tie_weights()
        sizes.append((out / "model.rdo").stat().st_size)
        found = loss_of_windows(model) / best - 1.0
        assert 0.2 * share < found < 1.6 * share, "on other text than that it was measured on"
    assert sizes[1] < 0.9 * sizes[0]


def test_a_classifier_needs_no_labels(text: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, vocab_size=42, num_labels=5, max_position_embeddings=32, pad_token_id=1)
    folder = tmp_path / "bert"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    state = compressed(folder, tmp_path / "out", "--calibration", str(text), bits=5.0)
    again = compressed(folder, tmp_path / "again", "--calibration", str(text), bits=5.0)
    assert all(torch.equal(state[name], again[name]) for name in state), "the same labels are drawn"
    steps = rdo.inspect_compressed(tmp_path / "out" / "model.rdo")
    assert len({tensor.name for tensor in steps.tensors if tensor.kind == "coded"}) == 17
    plain = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    errors = {name: float((state[name] - plain[name]).square().mean()) for name in state if state[name].ndim > 1}
    queries = errors["bert.encoder.layer.0.attention.self.query.weight"]
    assert errors["classifier.weight"] < 0.01 * queries, "attention hardly matters before training"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibration", "{text}"], "give --bits or --max-loss"),
        (["--max-loss", "1%"], "--max-loss measures the loss on a text: give --calibration"),
        (["--bits", "4", "--calibration", "{text}", "--distortion", "absolute"], "leave --distortion"),
        (["--bits", "4", "--calibration", "{folder}/absent.txt"], "not readable as UTF-8"),
        (["--bits", "4", "--calibration", "{folder}/empty.txt"], "no text to calibrate with"),
        (["--bits", "0.1", "--calibration", "{text}"], "ask for more"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(
    language_model: Path,
    text: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    given = [option.format(text=text, folder=tmp_path) for option in options]
    assert cli.main(["compress", str(language_model), str(tmp_path / "out"), *given]) in (1, 2)
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-loss", "much"], "a positive share such as 1% or 0.01, got 'much'"),
        (["--max-loss", "1%", "--bits", "3"], "not allowed with argument"),
    ],
)
def test_wrong_options_are_told_with_the_usage(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compress", "in", "out", "--calibration", "text", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "not with BertForMaskedLM"),
        ({"architectures": None}, "names its class under `architectures`"),
    ],
)
def test_other_models_are_refused(
    language_model: Path,
    text: Path,
    tmp_path: Path,
    change: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for file in language_model.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    options = ["--bits", "4", "--calibration", str(text)]
    assert cli.main(["compress", str(source), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
