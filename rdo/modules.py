"""What a model is under what torch wraps around it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` was given: its parameters have the names that other programs know them by."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def state_of(model_or_state_dict: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict of a model, as of :func:`uncompiled`; or what is one."""
    if isinstance(model_or_state_dict, nn.Module):
        state: Mapping[str, Tensor] = uncompiled(model_or_state_dict).state_dict()
        return state
    return model_or_state_dict
