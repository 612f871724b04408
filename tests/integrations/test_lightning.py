"""RateCallback in PyTorch Lightning: accumulation, clipping, logging, and resuming to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

import rdo
from rdo.errors import ConfigError
from rdo.integrations.lightning import RateCallback


class Module(lightning.LightningModule):
    def __init__(self, optimizers: int = 1, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
        self._optimizers = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, index: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layers(inputs), labels)

    def configure_optimizers(self) -> Any:
        made = [torch.optim.AdamW(self.parameters(), lr=0.02) for _ in range(self._optimizers)]
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10) for optimizer in made]
        return made, schedules if self._optimizers == 1 else []


def batches() -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    data = torch.utils.data.TensorDataset(
        torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    )
    return torch.utils.data.DataLoader(data, batch_size=4)


def trainer(out: Path, callback: RateCallback, epochs: int, **options: Any) -> lightning.Trainer:
    settings: dict[str, Any] = {"accelerator": "cpu", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
    logger = CSVLogger(out, flush_logs_every_n_steps=1)
    settings |= {"logger": logger, "enable_checkpointing": False, "callbacks": [callback], "max_epochs": epochs}
    return lightning.Trainer(**{**settings, **options})


def rate(**options: Any) -> RateCallback:
    settings: dict[str, Any] = {"lam": rdo.control.WarmUp(0.02, 8), "apply": "decoupled", "scale_by_lr": True}
    return RateCallback(**{**settings, "verbose": False, **options})


def test_a_resumed_training_has_the_same_bits_and_writes_the_same_file(tmp_path: Path) -> None:
    straight, first, second = Module(), Module(), Module()
    trainer(tmp_path, rate(save_to=tmp_path / "straight.rdo"), 2).fit(straight, batches())
    half = trainer(tmp_path, rate(), 1)
    half.fit(first, batches())
    half.save_checkpoint(tmp_path / "half.ckpt")
    callback = rate(save_to=tmp_path / "second.rdo")
    trainer(tmp_path, callback, 2).fit(second, batches(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for one, other in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert callback.handle is not None
    assert callback.handle.rate().step == 8  # 8 batches an epoch, of which two make a step
    assert (tmp_path / "second.rdo").read_bytes() == (tmp_path / "straight.rdo").read_bytes()


def test_a_size_is_met_and_resumed_to_the_bit(tmp_path: Path) -> None:
    """Stopped after 24 optimizer steps, when weights are rounded: the checkpoint holds the unrounded ones, too."""

    def sized(file: str | None = None) -> RateCallback:
        options: dict[str, Any] = {"bits_per_parameter": 8.0, "target_options": {"start": 20}, "verbose": False}
        return RateCallback(save_to=None if file is None else tmp_path / file, **options)

    straight, first, second = (Module(width=1500) for _ in range(3))
    trainer(tmp_path, sized("straight.rdo"), 8).fit(straight, batches())
    half = trainer(tmp_path, sized(), 6)
    half.fit(first, batches())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, sized("second.rdo"), 8).fit(
        second, batches(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    decoded = rdo.load_compressed(tmp_path / "straight.rdo")
    assert all(torch.equal(decoded[name], weight) for name, weight in straight.state_dict().items())
    assert 0.999 * 8.0 <= rdo.inspect_compressed(tmp_path / "straight.rdo").bits_per_parameter <= 8.0
    assert (tmp_path / "second.rdo").read_bytes() == (tmp_path / "straight.rdo").read_bytes()


def test_numbers_are_logged_where_lightning_logs(tmp_path: Path) -> None:
    trainer(tmp_path, rate(), 1).fit(Module(), batches())
    header, *rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    columns = header.split(",")
    assert {"rdo/bits_per_parameter", "rdo/sparsity", "rdo/lambda", "rdo/nu", "rdo/scale"} <= set(columns)
    assert float(rows[-1].split(",")[columns.index("rdo/lambda")]) == pytest.approx(0.02 * 4 / 8)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one optimizer, this one has 2"):
        trainer(tmp_path, rate(), 1, accumulate_grad_batches=1, gradient_clip_val=None).fit(Module(2), batches())
