"""The rate as a term of the loss, for training loops that want it there: differentiable, and opaque to compilers.

With ``term = RateTerm()``, ``loss + lam * term(parameters, term.fit(parameters))`` has the gradient of the paper's
Algorithm 1. The operator works under ``torch.compile``, ``torch.export`` and activation checkpointing; its backward
pass allocates the gradient it returns. ``rdo.attach(..., in_backward=True)`` does the same in place, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy import EntropyModel, entropy_model_from_config
from rdo.errors import ConfigError


class RateTerm:
    """The rate of parameters under a law, differentiable.

    Args:
        entropy_model: a registered law, or its name.
    """

    def __init__(self, entropy_model: EntropyModel | str = "generalized_gaussian") -> None:
        if isinstance(entropy_model, str):
            entropy_model = entropy_model_from_config({"name": entropy_model})
        self.entropy_model = entropy_model
        self._config = json.dumps(entropy_model.config(), sort_keys=True)

    @torch.no_grad()
    def fit(self, parameters: Sequence[Tensor]) -> Tensor:
        """Fit one law to all parameters as they are now: theta, float64 [K]."""
        moments = rdo_kernels.moments([parameter.detach() for parameter in parameters])
        return self.entropy_model.fit(torch.cat([moments[:, :4].sum(0), moments[:, 4].amax(0, keepdim=True)]))

    def __call__(self, parameters: Sequence[Tensor], theta: Tensor) -> Tensor:
        """Mean training rate in bits per parameter above the mode of the law; a float32 scalar.

        Args:
            parameters: floating-point tensors of any size, with at least one element in all.
            theta: what :meth:`fit` returned; a constant for the gradient.

        Raises:
            ConfigError: there is nothing to rate.
        """
        count = sum(parameter.numel() for parameter in parameters)
        if count == 0:
            raise ConfigError("there are no weights to rate")
        bits = [_rate(parameter, theta.detach(), self._config) for parameter in parameters]
        return (torch.stack(bits).sum() / count).to(torch.float32)


@torch.library.custom_op("rdo::rate", mutates_args=())
def _rate(weight: Tensor, theta: Tensor, config: str) -> Tensor:
    return rdo_kernels.rate([weight], _from_json(config), theta).reshape(()).to(weight.device)


@torch.library.custom_op("rdo::rate_gradient", mutates_args=())
def _rate_gradient(weight: Tensor, theta: Tensor, factor: Tensor, config: str) -> Tensor:
    gradient = torch.zeros_like(weight)
    rdo_kernels.add_rate_gradient([weight], [gradient], _from_json(config), theta, factor.reshape(1))
    return gradient


@_rate.register_fake
def _(weight: Tensor, theta: Tensor, config: str) -> Tensor:
    return weight.new_empty((), dtype=torch.float64)


@_rate_gradient.register_fake
def _(weight: Tensor, theta: Tensor, factor: Tensor, config: str) -> Tensor:
    return torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    weight, theta, ctx.config = inputs
    ctx.save_for_backward(weight, theta)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    weight, theta = ctx.saved_tensors
    return _rate_gradient(weight, theta, gradient, ctx.config), None, None


_rate.register_autograd(_backward, setup_context=_save)


@cache
def _from_json(config: str) -> EntropyModel:
    return entropy_model_from_config(json.loads(config))
