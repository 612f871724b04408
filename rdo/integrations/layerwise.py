"""Models larger than memory: a layer's weights are decoded just before it runs and dropped when it has run.

    from rdo.integrations import layerwise

    model = layerwise.from_pretrained(AutoModelForCausalLM, "model-rdo")

Embeddings, the head and whatever lies outside the repeated layers stay decoded. docs/serving.md says what it costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel, modeling_utils

from rdo.errors import ConfigError, IntegrationError
from rdo.integrations.decoded_layer import DecodedLayer, Schedule
from rdo.integrations.stored import StoredTensor
from rdo.integrations.transformers import LAYERWISE

_LAYERS: ContextVar[dict[str, DecodedLayer] | None] = ContextVar("layers", default=None)
"""While a model is loaded layer by layer: the layers found so far, by the name of the module."""


def from_pretrained(model_class: Any, folder: str, *, prefetch: bool = False, **options: Any) -> PreTrainedModel:
    """Load a compressed folder so that only one of its layers (two with ``prefetch``) is decoded at a time.

    The model computes what the wholly decoded one does, to the bit. It is for inference, under ``torch.no_grad()`` as
    ``generate`` runs it, and it cannot be saved (``rdo decompress`` gives the weights). Every layer is decoded once
    while the model is loaded, so damage shows then.

    Args:
        model_class: a class of transformers, such as ``AutoModelForCausalLM``.
        folder: a compressed model folder, or its name on the Hugging Face hub.
        prefetch: decode the next layer in a thread while one runs: for cores that would otherwise be idle.
        options: those of ``model_class.from_pretrained``; ``device_map`` may name one device.

    Raises:
        ConfigError: the folder is not compressed, the model has no layers that transformers would keep together, or
            ``device_map`` asks for several devices.
        CheckpointError: the weights are damaged, or do not fit the model.
    """
    if isinstance(options.get("device_map"), dict) or options.get("device_map") in ("auto", "balanced", "sequential"):
        raise ConfigError("device_map: layer by layer runs on one device; name it, such as device_map='cuda'")
    layers: dict[str, DecodedLayer] = {}
    token = _LAYERS.set(layers)
    try:
        model: PreTrainedModel = model_class.from_pretrained(folder, **options)
    finally:
        _LAYERS.reset(token)
    if not layers:
        raise ConfigError(
            f"{folder}: nothing to decode layer by layer; it takes a compressed folder (`rdo compress`) of a model "
            "with repeated layers"
        )
    vars(model)[LAYERWISE] = schedule = Schedule(list(layers.values()), prefetch)
    schedule.attach()
    return model


def _outside_layers(load: Callable[..., Any]) -> Callable[..., Any]:
    """Let transformers fill in what lies outside the layers only, while a model is loaded layer by layer."""

    @functools.wraps(load)
    def extended(model: PreTrainedModel, state_dict: dict[str, Any], load_config: Any, *args: Any, **more: Any) -> Any:
        layers = _LAYERS.get()
        if layers is None or not any(isinstance(tensor, StoredTensor) for tensor in state_dict.values()):
            return load(model, state_dict, load_config, *args, **more)
        found = {name: DecodedLayer(name, model, module, load_config) for name, module in _repeated(model)}
        outside = _shared_out(model, state_dict, load_config, found)
        info, *rest = load(model, outside, load_config, *args, **more)
        for name, layer in found.items():
            if layer.groups:
                info.missing_keys -= layer.try_out()
                layers[name] = layer
        return info, *rest

    return extended


def _repeated(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that transformers never splits, and of these the outermost: decoder layers."""
    kinds, outer = set(model._no_split_modules or ()), "\n"
    for name, module in model.named_modules():
        if type(module).__name__ in kinds and not name.startswith(f"{outer}."):
            outer = name
            yield name, module


def _shared_out(
    model: PreTrainedModel, state_dict: dict[str, Any], load_config: Any, layers: dict[str, DecodedLayer]
) -> dict[str, Any]:
    """Give each layer the tensors of the file that make its parameters; return the others.

    Names change and tensors are joined as ``convert_and_load_state_dict_in_model`` of transformers does it. Buffers,
    and parameters that are tied to others, stay outside.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = load_config.weight_mapping or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    expected, prefix = model.state_dict(), model.base_model_prefix
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    owner = {
        f"{name}.{parameter}": layer
        for name, layer in layers.items()
        for parameter, _ in layer.module.named_parameters()
        if f"{name}.{parameter}" not in tied
    }
    outside = {}
    for key in sorted(state_dict, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if target not in expected and key in expected:
            target, pattern = rename_source_key(key, [], [], prefix, expected)
        if target in owner and isinstance(state_dict[key], StoredTensor):
            converter = None if pattern is None else converter_of[pattern]
            owner[target].add(target, converter, pattern or key, key, state_dict[key])
        else:
            outside[key] = state_dict[key]
    return outside


if not hasattr(modeling_utils, "convert_and_load_state_dict_in_model"):
    raise IntegrationError(
        f"layer by layer takes transformers 5, this is {transformers.__version__}: install 5.23, or load the whole "
        "model with its own from_pretrained"
    )
modeling_utils.convert_and_load_state_dict_in_model = _outside_layers(
    modeling_utils.convert_and_load_state_dict_in_model
)

__all__ = ["from_pretrained"]
