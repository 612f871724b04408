"""RateCallback in TRL's SFTTrainer, which prepares texts and loss itself; where trl is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import rdo
from rdo.integrations.transformers import RateCallback
from tests.integrations.hub_folders import llama

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

TEXTS = ["the wolves ran over the hill", "a cat sat on the mat all day", "rain fell on the roof"] * 12
STEPS = 30


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": ["<eos>", "<pad>"], "initial_alphabet": letters}
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=290, show_progress=False, **options))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def trainer(out: Path, callback: RateCallback, steps: int = STEPS) -> Any:
    torch.manual_seed(0)
    tokens = tokenizer()
    settings: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": steps}
    settings |= {"learning_rate": 1e-2, "logging_steps": 5, "save_steps": 25, "report_to": "none", "use_cpu": True}
    settings |= {"bf16": False, "max_length": 32, "disable_tqdm": True, "lr_scheduler_type": "constant"}
    return trl.SFTTrainer(
        model=llama(vocab_size=len(tokens), eos_token_id=0, pad_token_id=1, bos_token_id=None),
        args=trl.SFTConfig(output_dir=str(out), **settings),
        train_dataset=datasets.Dataset.from_dict({"text": TEXTS}),
        processing_class=tokens,
        callbacks=[callback],
    )


def sized(**options: Any) -> RateCallback:
    return RateCallback(bits_per_parameter=3.0, target_options={"start": 20}, verbose=False, **options)


def test_a_size_ends_in_a_folder_that_holds_the_trained_model(tmp_path: Path) -> None:
    small = tmp_path / "small"
    found = trainer(tmp_path / "run", sized(save_to=small))
    found.train()
    rows = [row for row in found.state.log_history if "loss" in row]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert all({"mean_token_accuracy", "rdo/bits_per_parameter", "rdo/sparsity"} <= row.keys() for row in rows)
    assert 0.99 * 3.0 <= rdo.inspect_compressed(small / "model.rdo").bits_per_parameter <= 3.0
    loaded, trained = AutoModelForCausalLM.from_pretrained(small).state_dict(), found.model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())
    assert AutoTokenizer.from_pretrained(small)("the cat")["input_ids"] == tokenizer()("the cat")["input_ids"]


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    """From step 25, when weights are rounded already."""
    straight = trainer(tmp_path / "straight", sized())
    straight.train()
    trainer(tmp_path / "stopped", sized(), steps=25).train()
    resumed = trainer(tmp_path / "stopped", sized())
    resumed.train(resume_from_checkpoint=RateCallback.last_checkpoint(tmp_path / "stopped"))
    assert resumed.state.global_step == STEPS
    expected = straight.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())


def test_lambda_makes_weights_cheaper(tmp_path: Path) -> None:
    bits = []
    for lam in (1e-4, 0.3):
        quantizer = rdo.UniformQuantizer(step=2**-6)
        found = trainer(tmp_path / str(lam), RateCallback(lam=lam, quantizer=quantizer, verbose=False))
        found.train()
        bits.append([row for row in found.state.log_history if "loss" in row][-1]["rdo/bits_per_parameter"])
    assert bits[1] < 0.8 * bits[0]
