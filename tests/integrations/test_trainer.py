"""RateCallback in a real Trainer: what it logs, resuming to the bit mid-epoch, the folder at the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import rdo
import rdo.integrations.transformers
from rdo.errors import CheckpointError, ConfigError
from rdo.integrations.transformers import RateCallback

EXAMPLES = 40


class KilledError(Exception):
    """Stands for the end of the process."""


class Kill(TrainerCallback):
    """Ends the training in the middle of an epoch, after the checkpoint of that step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 7:
            raise KilledError


class Sink(TrainerCallback):
    """What a logger such as TensorBoard's sees; it is called before callbacks that a user adds."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        self.rows.append(dict(logs))


def bert(width: int = 16) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=2, max_position_embeddings=16))


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (EXAMPLES, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row.sum() % 2)} for row in ids]


def trainer(out: Path, *callbacks: TrainerCallback, width: int = 16, **options: Any) -> Trainer:
    """Dropout and shuffling are on: resuming must restore random numbers, too. 5 steps an epoch, 10 in all."""
    settings: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 3, "max_grad_norm": 1.0, "num_train_epochs": 2}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 2, "seed": 3}
    settings |= {"save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(output_dir=str(out), **{**settings, **options})
    return Trainer(model=bert(width), args=arguments, train_dataset=examples(), callbacks=list(callbacks))


def rate(**options: Any) -> RateCallback:
    """The learning rate's peak and the schedule of lambda are state that a checkpoint must hold."""
    schedule = rdo.control.WarmUp(0.02, 8)
    settings: dict[str, Any] = {"lam": schedule, "apply": "decoupled", "scale_by_lr": True, "verbose": False}
    return RateCallback(**{**settings, **options})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    out = tmp_path_factory.mktemp("straight")
    found = trainer(out / "run", rate(save_to=out / "small", quantizer=rdo.UniformQuantizer(step=2**-6)))
    found.train()
    return found, out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        trainer(out, rate(), Kill()).train()
    return out


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("restore", [False, True])
def test_a_killed_training_goes_on_to_the_bit(restore: bool, straight: tuple[Trainer, Path], interrupted: Path) -> None:
    again = trainer(interrupted, rate(), restore_callback_states_from_checkpoint=restore)
    last = RateCallback.last_checkpoint(interrupted)
    assert last is not None
    assert last.endswith("checkpoint-6")  # of 5 steps an epoch: in the second
    again.train(resume_from_checkpoint=last)
    expected = weights(straight[0].model)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again.model).items())
    assert again.state.global_step == 10
    assert again.state.log_history[-2]["rdo/lambda"] == straight[0].state.log_history[-2]["rdo/lambda"] == 0.02


def test_the_rate_counts_once_per_update_and_changes_the_weights(
    straight: tuple[Trainer, Path], tmp_path: Path
) -> None:
    plain = trainer(tmp_path / "plain", rate(lam=0.0), save_steps=100)
    plain.train()
    expected = weights(straight[0].model)
    assert not torch.equal(weights(plain.model)["classifier.weight"], expected["classifier.weight"])


def test_numbers_reach_loggers_and_the_history(straight: tuple[Trainer, Path], tmp_path: Path) -> None:
    names = {"rdo/bits_per_parameter", "rdo/sparsity", "rdo/lambda", "rdo/nu", "rdo/scale"}
    history = [row for row in straight[0].state.log_history if "loss" in row]
    assert len(history) == 5
    assert all(names <= row.keys() for row in history)
    assert [row["rdo/lambda"] for row in history] == [0.02 * min(1, step / 8) for step in (2, 4, 6, 8, 10)]
    assert all(0.0 < row["rdo/bits_per_parameter"] < 9 and 0.0 < row["rdo/sparsity"] < 1 for row in history)
    sink = Sink()
    trainer(tmp_path, sink, rate(), max_steps=2).train()
    assert names <= sink.rows[0].keys()


def test_the_folder_at_the_end_holds_the_trained_weights(straight: tuple[Trainer, Path]) -> None:
    trained, out = straight
    loaded = AutoModelForSequenceClassification.from_pretrained(out / "small")
    assert (out / "small/model.rdo").stat().st_size < 8000 * 4 / 3
    for name, weight in weights(trained.model).items():
        torch.testing.assert_close(dict(loaded.named_parameters())[name], weight, rtol=0, atol=2**-7 + 1e-6)
    assert sorted(path.name for path in out.iterdir()) == ["run", "small"], "something was left over"


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt"])
def test_resuming_without_the_optimizers_state_is_refused(missing: str, interrupted: Path) -> None:
    (interrupted / "checkpoint-6" / missing).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-6 has no optimizer\.pt or no scheduler\.pt"):
        trainer(interrupted, rate()).train(resume_from_checkpoint=True)


def test_checkpoints_that_were_not_saved_to_the_end_are_passed_over(interrupted: Path) -> None:
    (interrupted / "checkpoint-8").mkdir()
    (interrupted / "checkpoint-6/rdo_state.safetensors").unlink()
    last = RateCallback.last_checkpoint(interrupted)
    assert last == str(interrupted / "checkpoint-4")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-8 has no rdo_state\.safetensors: it was not saved to its end"
    ):
        trainer(interrupted, rate()).train(resume_from_checkpoint=True)
    assert RateCallback.last_checkpoint(interrupted / "nothing") is None


def test_checkpoints_of_other_trainings_are_refused(interrupted: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "plain", max_steps=2).train()
    with pytest.raises(
        CheckpointError, match=r"has no rdo_state\.safetensors: .* or by a training without RateCallback"
    ):
        trainer(tmp_path / "plain", rate()).train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="cannot resume: apply was decoupled"):
        trainer(interrupted, rate(apply="proximal", scale_by_lr=False)).train(
            resume_from_checkpoint=str(interrupted / "checkpoint-6")
        )


def test_a_size_is_trained_for_resumed_to_the_bit_and_met(tmp_path: Path) -> None:
    """The model holds rounded weights from step 20 on; the unrounded ones are in the callback's own file."""

    def sized(out: Path, *others: TrainerCallback) -> Trainer:
        callback = RateCallback(
            bits_per_parameter=5.0, verbose=False, save_to=out / "small", target_options={"start": 20}
        )
        (out / "small").parent.mkdir(exist_ok=True)
        return trainer(out / "run", callback, *others, width=64, num_train_epochs=6, save_steps=13, logging_steps=50)

    class KillLate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 28:
                raise KilledError

    straight, again = sized(tmp_path / "straight"), sized(tmp_path / "again")
    straight.train()
    with pytest.raises(KilledError):
        sized(tmp_path / "again", KillLate()).train()
    assert sorted(path.name for path in (tmp_path / "again/run").iterdir()) == ["checkpoint-13", "checkpoint-26"]
    again.train(resume_from_checkpoint=True)
    expected = weights(straight.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again.model).items())
    files = [tmp_path / name / "small/model.rdo" for name in ("straight", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    count = sum(weight.numel() for weight in expected.values())
    assert 4.95 < 8 * files[0].stat().st_size / count <= 5.0
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "straight/small")
    assert all(torch.equal(weight.detach(), expected[name]) for name, weight in loaded.named_parameters())
