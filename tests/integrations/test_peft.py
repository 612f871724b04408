"""LoRA: the adapters' own rate with rdo.attach, the merged weights' with attach_merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import rdo
from rdo.errors import ConfigError
from rdo.integrations.peft import attach_merged


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 20)
        self.down = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def adapted(**options: Any) -> PeftModel:
    """Adapters that are not zero, as after some training."""
    model = get_peft_model(Net(), LoraConfig(r=2, lora_alpha=4, target_modules=["up", "down"], **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)


def test_attach_covers_the_adapters_alone() -> None:
    model = adapted()
    handle = rdo.attach(sgd(model), model, lam=0.1, verbose=False)
    assert handle.constraint.count == 2 * (6 + 20) + 2 * (20 + 3)
    assert all("lora_" in name for name in handle.constraint.names)


def test_the_merged_weights_rate_reaches_the_adapters_by_the_chain_rule() -> None:
    model = adapted()
    optimizer = sgd(model)
    handle = attach_merged(optimizer, model, lam=0.5)
    merged = handle.merged()
    law = rdo.RateConstraint([(str(i), w) for i, w in enumerate(merged)], lam=0.5)
    theta = law.fit()
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]
    before = [
        (m.lora_A["default"].weight.detach().clone(), m.lora_B["default"].weight.detach().clone()) for m in layers
    ]
    optimizer.step()
    for layer, weight, (a, b) in zip(layers, merged, before, strict=True):
        slope = 0.5 / law.count * law.entropy_model.slope(weight, theta)
        scaling = layer.scaling["default"]
        moved_a = layer.lora_A["default"].weight.detach() - a
        moved_b = layer.lora_B["default"].weight.detach() - b
        torch.testing.assert_close(moved_a, -scaling * b.T @ slope, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(moved_b, -scaling * slope @ a.T, rtol=1e-4, atol=1e-8)
        assert layer.get_base_layer().weight.grad is None
    report = handle.rate()
    assert (report.step, report.parameters) == (1, 6 * 20 + 20 * 3)
    law.fit()
    assert report.surrogate_bits_per_parameter == pytest.approx(law.surrogate_rate(), rel=1e-5)


def test_training_the_adapters_lowers_the_rate_of_what_merge_and_unload_gives(tmp_path: Any) -> None:
    sizes = []
    for lam in (0.0, 1.0):
        model = adapted()
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.02)
        handle = attach_merged(optimizer, model, lam=lam)
        for _ in range(60):
            optimizer.zero_grad()
            optimizer.step()
        weights = handle.merged()
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged.up.weight.detach(), weights[0])
        file = rdo.save_compressed(merged, tmp_path / "model.rdo", quantizer=rdo.UniformQuantizer(step=2**-5))
        sizes.append(file.coded_bits_per_parameter)
    assert sizes[1] < sizes[0] - 0.1


def test_steps_that_a_scaler_skips_do_not_count_and_scaled_gradients_are_those_without() -> None:
    moved = []
    for scaled in (False, True):
        model = adapted()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01, fused=True)
        handle = attach_merged(optimizer, model, lam=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        scaler.scale(model(torch.ones(2, 6)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        if scaled:
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 6)).sum() * torch.inf).backward()
            scaler.step(optimizer)
            assert handle.rate().step == 1
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_state_resumes_and_refuses_other_settings() -> None:
    model = adapted()
    handle = attach_merged(sgd(model), model, lam=0.5)
    handle.load_state_dict({**handle.state_dict(), "step": 7})
    assert handle.rate().step == 7
    with pytest.raises(ConfigError, match="cannot resume: parameters was 1"):
        handle.load_state_dict({**handle.state_dict(), "parameters": 1})


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable LoRA layer"):
        attach_merged(sgd(Net()), Net(), lam=0.1)
    with pytest.raises(ConfigError, match="DoRA"):
        attach_merged(sgd(adapted(use_dora=True)), adapted(use_dora=True), lam=0.1)
    model = adapted()
    model.base_model.model.up.base_layer.weight = nn.Parameter(
        torch.zeros(20, 6, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ConfigError, match=r"floating-point numbers, got torch\.int8"):
        attach_merged(sgd(model), model, lam=0.1)
    with pytest.raises(ConfigError, match="lambda must be"):
        attach_merged(sgd(adapted()), adapted(), lam=-1.0)
