"""Compressed model folders in transformers: once this module is imported, ``from_pretrained`` loads them.

``rdo compress FOLDER OUT`` makes such a folder. Its weights are decoded one tensor at a time, as transformers asks for
them, and the model that results is an ordinary one. docs/transformers.md says what is extended and how.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rdo.errors import ConfigError, IntegrationError
from rdo.integrations.folder import METHOD, WEIGHTS
from rdo.integrations.stored import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from rdo.integrations.trainer import RateCallback

_ADVICE = (
    "Tested are transformers 4.57 and 5.23: install one of them, "
    "or `rdo decompress FOLDER PLAIN` and load the plain folder"
)

try:
    import transformers
    from transformers import PreTrainedModel, modeling_utils
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.hub import cached_file
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise IntegrationError(f"transformers cannot load models that rdo compressed: {error}. {_ADVICE}") from error

LAYERWISE = "_rdo_layerwise"
"""Attribute of models that :mod:`rdo.integrations.layerwise` has loaded."""

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "user_agent",
)


@register_quantization_config(METHOD)
class RdoConfig(QuantizationConfigMixin):
    """``quantization_config`` of a compressed folder; the configuration of a loaded model keeps it."""

    def __init__(self, **details: Any) -> None:
        vars(self).update(details, quant_method=METHOD)

    def to_diff_dict(self) -> dict[str, Any]:
        """All entries; transformers 4 prints these, and leaves it to each class to say which they are."""
        return self.to_dict()


@register_quantizer(METHOD)
class RdoQuantizer(HfQuantizer):
    """Changes nothing in a model: its weights arrive decoded, and it is an ordinary one."""

    requires_calibration = True  # transformers refuses it for folders that are not compressed

    def preprocess_model(self, model: PreTrainedModel, dtype: Any = None, **options: Any) -> None:
        """Leave the model unmarked: transformers forbids casts and training of what it takes as quantised."""

    def postprocess_model(self, model: PreTrainedModel, **options: Any) -> None:
        """Keep the configuration, but not this object, or ``save_pretrained`` would ignore its ``state_dict=``."""
        model.config.quantization_config = self.quantization_config
        del model.hf_quantizer
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_pre_quantization_dtype", None)  # transformers 4 could not write it as JSON

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **options: Any) -> None:
        """Nothing; abstract in transformers 4."""

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **options: Any) -> None:
        """Nothing; abstract in transformers 4."""

    def is_serializable(self, **options: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _find_weights(find: Callable[..., Any]) -> Callable[..., Any]:
    """Where transformers finds no weights that it knows, look for ours, through its own cache and hub client."""
    parameters = inspect.signature(find)

    @functools.wraps(find)
    def extended(*args: Any, **options: Any) -> Any:
        try:
            return find(*args, **options)
        except OSError:
            file = _compressed_file(parameters.bind(*args, **options).arguments)
            if file is None:
                raise
            return [file], None

    return extended


def _compressed_file(asked: dict[str, Any]) -> str | None:
    model = asked.get("pretrained_model_name_or_path")
    if model is None or any(asked.get(name) for name in ("variant", "gguf_file", "transformers_explicit_filename")):
        return None
    asked = {**asked, **(asked.get("download_kwargs") or {})}
    file: str | None = cached_file(
        str(model),
        WEIGHTS,
        **{name: asked[name] for name in _HUB_OPTIONS if asked.get(name) is not None},
        _commit_hash=asked.get("commit_hash"),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return file


def _load_weights(load: Callable[..., Any]) -> Callable[..., Any]:
    """Read our files as tensors that are decoded when they are used."""
    parameters = inspect.signature(load)

    @functools.wraps(load)
    def extended(checkpoint_file: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        if not os.fspath(checkpoint_file).endswith(".rdo"):
            return load(checkpoint_file, *args, **options)
        tensors = stored_tensors(checkpoint_file)
        if parameters.bind(checkpoint_file, *args, **options).arguments.get("map_location") == "meta":
            return {name: tensor.on_meta() for name, tensor in tensors.items()}
        return tensors

    return extended


def _decode_there(materialize: Callable[..., Any]) -> Callable[..., Any]:
    """Decode on the device that a parameter belongs to, instead of on the CPU to copy it."""
    parameters = inspect.signature(materialize)

    @functools.wraps(materialize)
    def extended(tensor: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(tensor, StoredTensor):
            return materialize(tensor, *args, **options)
        asked = parameters.bind(tensor, *args, **options).arguments
        return tensor.on(asked.get("device"), asked.get("dtype"))

    return extended


def _save_plain(save: Callable[..., Any]) -> Callable[..., Any]:
    """Plain weights are not ours any more, so the configuration beside them says nothing of rdo."""

    @functools.wraps(save)
    def extended(self: PreTrainedModel, *args: Any, **options: Any) -> Any:
        if LAYERWISE in vars(self):
            raise ConfigError(
                "a model that is decoded layer by layer does not hold its weights: copy its folder, or write plain "
                "weights with `rdo decompress`"
            )
        ours = vars(self.config).get("quantization_config")
        if not isinstance(ours, RdoConfig):
            return save(self, *args, **options)
        del self.config.quantization_config
        try:
            return save(self, *args, **options)
        finally:
            self.config.quantization_config = ours

    return extended


def _extend() -> None:
    """Put the functions into transformers.

    Raises:
        IntegrationError: this version of transformers does not have what they extend.
    """
    extensions = (
        (modeling_utils, "_get_resolved_checkpoint_files", "pretrained_model_name_or_path", _find_weights),
        (modeling_utils, "load_state_dict", "map_location", _load_weights),
        (PreTrainedModel, "save_pretrained", "save_directory", _save_plain),
    )
    for owner, name, parameter, _ in extensions:
        function = getattr(owner, name, None)
        if function is None or parameter not in inspect.signature(function).parameters:
            raise IntegrationError(
                f"transformers {transformers.__version__} has no {name}({parameter}=...), which rdo extends. {_ADVICE}"
            )
    for owner, name, _, extend in extensions:
        setattr(owner, name, extend(getattr(owner, name)))
    loading: Any = getattr(transformers, "core_model_loading", None)
    if hasattr(loading, "_materialize_copy"):  # not in transformers 4, where all is decoded on the CPU
        loading._materialize_copy = _decode_there(loading._materialize_copy)


def __getattr__(name: str) -> Any:
    """``RateCallback`` on demand: models are loaded without the Trainer, which needs accelerate."""
    if name == "RateCallback":
        from rdo.integrations.trainer import RateCallback

        return RateCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_extend()

__all__ = ["RateCallback", "RdoConfig", "RdoQuantizer", "StoredTensor"]
