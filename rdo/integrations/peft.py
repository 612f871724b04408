"""The rate of weights that LoRA adapters of peft are merged into, constrained by training the adapters alone.

``rdo.attach`` on a peft model covers the adapters' own matrices, which is what counts when adapters are shipped by
themselves. :func:`attach_merged` covers ``W + scaling * B A`` instead, which is what ``merge_and_unload`` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rdo.attach import innermost
from rdo.control import Constant, Schedule
from rdo.entropy import EntropyModel
from rdo.errors import ConfigError, IntegrationError
from rdo.loss import RateTerm
from rdo.optimizer_state import gradient_scale, will_skip
from rdo.rate_report import RateReport
from rdo.sharding import is_sharded

try:
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise IntegrationError(f"adapters cannot be constrained: {error}; pip install peft") from error


class MergedAttachment:
    """The rate of merged weights acting on a training until :meth:`remove` is called."""

    def __init__(self, optimizer: Optimizer, layers: list[tuple[str, Any]], term: RateTerm, lam: Schedule) -> None:
        self.names = [name for name, _ in layers]
        self._layers, self._term, self._schedule = [layer for _, layer in layers], term, lam
        self.step = 0
        self._bits, self._theta, self._lam = float("nan"), torch.empty(0), lam(0)
        self.count = sum(layer.get_base_layer().weight.numel() for layer in self._layers)
        self._hooks = [optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step))]  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def merged(self) -> list[Tensor]:
        """The merged weights as they are now, float32."""
        return [_merged(layer) for layer in self._layers]

    def rate(self) -> RateReport:
        """What the last step saw, of the merged weights."""
        names = self._term.entropy_model.theta_names
        theta = dict(zip(names, self._theta.tolist() or [float("nan")] * len(names), strict=True))
        return RateReport(self.step, self._lam, self.count, self._bits, theta)

    def state_dict(self) -> dict[str, Any]:
        """State to save beside the optimizer's; resumes bit-exactly."""
        return {"step": self.step, "parameters": self.count, "entropy_model": self._term.entropy_model.config()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; raises ConfigError if the settings differ."""
        for key, value in self.state_dict().items():
            if key != "step" and state[key] != value:
                raise ConfigError(f"cannot resume: {key} was {state[key]} when the state was saved and is {value} now")
        self.step = int(state["step"])

    def remove(self) -> None:
        """Detach; later steps are plain ones."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if will_skip(optimizer):
            return
        self._lam = self._schedule(self.step)
        self.step += 1
        if self._lam == 0.0:
            return
        self._theta = self._term.fit(self.merged())
        factor, self._bits = gradient_scale(optimizer) * self._lam, 0.0
        for layer in self._layers:  # one merged matrix at a time
            adapters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            with torch.enable_grad():
                weight = _merged(layer)
                bits = self._term([weight], self._theta) * (weight.numel() / self.count)
                slopes = torch.autograd.grad(bits * factor, adapters)
            self._bits += float(bits.detach())
            for parameter, slope in zip(adapters, slopes, strict=True):
                parameter.grad = slope if parameter.grad is None else parameter.grad + slope


def attach_merged(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    lam: float | Schedule,
    entropy_model: EntropyModel | str = "generalized_gaussian",
) -> MergedAttachment:
    """Constrain the rate of the weights that the model will have when its LoRA adapters have been merged.

    The slope of the rate at ``W + scaling * B A`` goes through the chain rule to A and B, once per optimizer step. It
    takes memory for all merged matrices in float32 while the law is fitted.

    Args:
        optimizer: any torch optimizer over the adapters, or what accelerate made of one.
        model: a peft model whose active adapters are LoRA on matrices that are not quantised.
        lam: loss per bit per merged parameter, or a schedule of it.

    Raises:
        ConfigError: there is no such layer, a base weight is quantised, or an adapter has more than a product of two
            matrices (DoRA), or is sharded.
    """
    found: list[tuple[str, Any]] = [pair for pair in model.named_modules() if isinstance(pair[1], LoraLayer)]
    layers = [(name, layer) for name, layer in found if any(p.requires_grad for p in layer.parameters())]
    if not layers:
        raise ConfigError("the model has no trainable LoRA layer; use rdo.attach for a model without adapters")
    for name, layer in layers:
        weight = layer.get_base_layer().weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2 or is_sharded(weight):
            raise ConfigError(f"{name}: merged weights need a matrix of floating-point numbers, got {weight.dtype}")
        if any(layer.use_dora.get(adapter) for adapter in layer.active_adapters):
            raise ConfigError(f"{name}: the merged weight of DoRA is not W + scaling * B A; use rdo.attach")
    schedule: Callable[[int], float] = lam if callable(lam) else Constant(float(lam))
    if not schedule(0) >= 0.0:
        raise ConfigError(f"lambda must be a number of 0 or more, got {schedule(0)}")
    return MergedAttachment(innermost(optimizer), layers, RateTerm(entropy_model), schedule)


def _merged(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight.detach().to(torch.float32)
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight = weight + layer.get_delta_weight(adapter).to(torch.float32)
    return weight
