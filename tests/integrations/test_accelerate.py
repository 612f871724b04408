"""rdo.attach on what accelerate makes of an optimizer: accumulation, clipping, and the order of preparation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

import rdo
from rdo.attach import innermost


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    inputs, labels = torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return list(zip(inputs.split(4), labels.split(4), strict=True))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_the_term_enters_once_per_real_update(apply: str) -> None:
    """Six batches, accumulated by three and clipped: two updates, the same as by hand."""
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.02)
    rdo.attach(optimizer, plain, lam=0.3, apply=apply, verbose=False)
    for index, (inputs, labels) in enumerate(data()):
        (nn.functional.cross_entropy(plain(inputs), labels) / 3).backward()
        if index % 3 == 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    prepared = model()
    inner = torch.optim.AdamW(prepared.parameters(), lr=0.02)
    prepared, wrapped = accelerator.prepare(prepared, inner)
    handle = rdo.attach(wrapped, prepared, lam=0.3, apply=apply, verbose=False)
    assert innermost(wrapped) is inner
    for inputs, labels in data():
        with accelerator.accumulate(prepared):
            accelerator.backward(nn.functional.cross_entropy(prepared(inputs), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
            wrapped.step()
            wrapped.zero_grad()
    assert handle.rate().step == 2
    for one, other in zip(plain.parameters(), prepared.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    handle.remove()
    assert not inner._optimizer_step_pre_hooks
