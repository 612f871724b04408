"""One process of the tests of the Trainer on several; started by ``torchrun``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from worker import whole

from rdo.integrations.transformers import RateCallback
from tests.integrations.test_trainer import bert, examples

BITS, LOSS = 5.0, 0.5
"""Weights are rounded from step 20 on; checkpoints are those of steps 13 and 26."""


def share_of_loss(model: nn.Module) -> float:
    """Each process looks at data of its own."""
    return loss_of(model, dist.get_rank(), dist.get_world_size())


def loss_of(model: nn.Module, first: int = 0, stride: int = 1) -> float:
    """The mean loss on every so many of the examples."""
    rows = examples()[first::stride]
    ids, labels = torch.stack([row["input_ids"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    return float(model(input_ids=ids, labels=labels).loss)


MODES: dict[str, dict[str, Any]] = {
    "lam": {"lam": 0.05},
    "size": {"bits_per_parameter": BITS},
    "quality": {"max_loss": LOSS, "evaluate": share_of_loss},
}


class StoppedError(Exception):
    """Stands for the end of the processes."""


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 28:
            raise StoppedError


def trainer(kind: str, mode: str, out: Path, *callbacks: TrainerCallback) -> tuple[Trainer, RateCallback]:
    options = dict(MODES[mode])
    if mode != "lam":
        options["target_options"] = {"start": 20, "compensated": kind != "fsdp"}
    callback = RateCallback(save_to=out / "small", verbose=False, **options)
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 4,
        "seed": 3,
    }
    settings |= {"save_steps": 13, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 10}
    if kind == "fsdp":
        sharding = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
        settings |= {"fsdp": True, "fsdp_config": sharding | {"state_dict_type": "SHARDED_STATE_DICT"}}
    arguments = TrainingArguments(output_dir=str(out / "run"), **settings)
    if kind == "fsdp":  # accelerate shards on GPUs only, unless it takes these processes for such
        assert arguments.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    made = Trainer(model=bert(64), args=arguments, train_dataset=examples(), callbacks=[callback, *callbacks])
    return made, callback


def run(kind: str, mode: str, out: Path, *, stopped: bool = False) -> dict[str, Any]:
    """What the training came to, on every process, and the folder."""
    out.mkdir(parents=True, exist_ok=True)
    if stopped:
        try:
            trainer(kind, mode, out, Stop())[0].train()
        except StoppedError:
            dist.barrier()
    made, callback = trainer(kind, mode, out)
    made.train(resume_from_checkpoint=RateCallback.last_checkpoint(out / "run") if stopped else None)
    weights = {name: whole(weight.detach()) for name, weight in made.model.named_parameters()}
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights.values())).hexdigest()
    assert callback.handle is not None
    target = getattr(callback.handle, "target", None)
    mine = [digest, made.state.global_step, getattr(target, "loss", None)]  # what was measured last
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine)
    file = out / "small/model.rdo"
    found = {"processes": theirs, "bits": 8 * file.stat().st_size / sum(w.numel() for w in weights.values())}
    loaded = AutoModelForSequenceClassification.from_pretrained(out / "small")
    differences = [(weight - weights[name]).abs().max().item() for name, weight in loaded.named_parameters()]
    with torch.no_grad():
        found["loss"] = loss_of(loaded)
    return found | {"off": max(differences), "sharded": "DTensor" in type(next(made.model.parameters())).__name__}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scenarios = {f"{kind}-{mode}": (kind, mode, False) for kind in ("ddp", "fsdp") for mode in ("size", "quality")}
    scenarios |= {"fsdp-lam": ("fsdp", "lam", False), "fsdp-size-again": ("fsdp", "size", True)}
    for name, (kind, mode, stopped) in scenarios.items():
        found = run(kind, mode, out / name, stopped=stopped)
        if os.environ["RANK"] == "0":
            (out / f"{os.environ['WORLD_SIZE']}-{name}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
