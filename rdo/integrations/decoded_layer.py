"""One layer of a model in memory at a time: what decodes it, and when."""

from __future__ import annotations

import copy
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rdo.checkpoint.on_device import decodes_on, tensors_on
from rdo.checkpoint.threads import for_each
from rdo.errors import CheckpointError, ConfigError
from rdo.integrations.stored import StoredTensor

Parameters = dict[str, Tensor]
"""By their names in the whole model."""


@dataclass
class Group:
    """Tensors of the file that become one parameter, or several together.

    Attributes:
        converter: what transformers makes of them; None if they are the parameter as they are.
        parts: of each its pattern in the converter, its name in the model folder, and itself.
    """

    converter: Any
    parts: list[tuple[str, str, StoredTensor]] = field(default_factory=list)


class DecodedLayer:
    """A module whose parameters hold nothing, except between :meth:`fill` and :meth:`drop`.

    Args:
        name: of the module in the model.
        load_config: what transformers was asked for: device and data types.
    """

    def __init__(self, name: str, model: Any, module: nn.Module, load_config: Any) -> None:
        self.name, self.module = name, module
        self.groups: dict[str, Group] = {}
        self._config, self._plan = model.config, load_config.dtype_plan or {}
        self._device = torch.device(next(iter((load_config.device_map or {"": "cpu"}).values())))
        self._empty = {f"{name}.{key}": parameter for key, parameter in module.named_parameters()}
        self._names: set[str] = set()

    def add(self, target: str, converter: Any, pattern: str, key: str, tensor: StoredTensor) -> None:
        """Let a tensor of the file, called ``key`` in the model folder, take part in the parameter ``target``."""
        self.groups.setdefault(target, Group(converter)).parts.append((pattern, key, tensor))

    def try_out(self) -> set[str]:
        """Decode everything once; return the names of the parameters that there are then.

        Raises:
            CheckpointError: the file is damaged, or a size is not that of the model.
        """
        values = self.decode()
        for name, value in values.items():
            wanted = self._empty.get(name)
            if wanted is None or wanted.shape != value.shape:
                size = "no such parameter" if wanted is None else f"a parameter of size {list(wanted.shape)}"
                raise CheckpointError(
                    f"the model has {size} for {name!r}, the compressed file one of size {list(value.shape)}; load it "
                    "with the configuration that is in its folder"
                )
        self._names = set(values)
        self.drop()
        return set(values)

    def decode(self) -> Parameters:
        """All parameters of the layer, on its device, in the data types of the model."""
        parts = {part.name: (part, target) for target, group in self.groups.items() for _, _, part in group.parts}
        file = next(iter(parts.values()))[0].source.file
        dtypes = {name: self._dtype(target) for name, (_, target) in parts.items()}
        # first as saved, then converted: the same numbers as from_pretrained gives
        if decodes_on(self._device):
            stored = tensors_on(file, list(parts), None, self._device)
            stored = {name: tensor.to(dtypes[name]) for name, tensor in stored.items()}
        else:
            sizes = {name: part.shape.numel() for name, (part, _) in parts.items()}
            stored = for_each(lambda name: file.tensor(name).to(self._device, dtypes[name]), sizes)
        values: Parameters = {}
        for target, group in self.groups.items():
            found = [(pattern, key, stored[part.name]) for pattern, key, part in group.parts]
            if group.converter is None:
                values[target] = found[0][2]
                continue
            converter = copy.deepcopy(group.converter)
            for pattern, key, value in found:
                converter.add_tensor(target, key, pattern, lambda value=value: value)
            made = converter.convert(target, model=None, config=self._config)
            values |= {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return values

    def fill(self, values: Parameters) -> None:
        """Put parameters into the module."""
        for name, value in values.items():
            self._set(name, nn.Parameter(value, requires_grad=False))

    def drop(self) -> None:
        """Let the parameters hold nothing again."""
        for name in self._names:
            empty = self._empty[name]
            empty._is_hf_initialized = True  # type: ignore[attr-defined]  # or transformers would
            self._set(name, empty)

    def _set(self, name: str, parameter: nn.Parameter) -> None:
        path, _, last = name.removeprefix(f"{self.name}.").rpartition(".")
        self.module.get_submodule(path)._parameters[last] = parameter

    def _dtype(self, target: str) -> torch.dtype:
        """As transformers chooses it: some parameters stay in float32 whatever the model is in."""
        for pattern, dtype in self._plan.items():
            if re.search(pattern.replace("*", r".*"), target):
                found: torch.dtype = dtype
                return found
        return self._empty[target].dtype


class Schedule:
    """Layers in the order in which they run; with ``prefetch`` the next one is decoded while one runs."""

    def __init__(self, layers: list[DecodedLayer], prefetch: bool) -> None:
        self._layers = layers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rdo-prefetch") if prefetch else None
        self._ahead: tuple[int, Future[Parameters]] | None = None

    def attach(self) -> None:
        """Hook the layers' modules."""
        for index, layer in enumerate(self._layers):
            layer.module.register_forward_pre_hook(lambda *_, index=index: self._before(index))
            layer.module.register_forward_hook(lambda *_, layer=layer: layer.drop(), always_call=True)

    def close(self) -> None:
        """Wait for the layer that is being decoded ahead, if there is one, and forget it."""
        if self._ahead is not None:
            self._ahead[1].result()
            self._ahead = None

    def _before(self, index: int) -> None:
        if torch.is_grad_enabled():  # the graph would hold every layer that ran
            raise ConfigError(
                "a model decoded layer by layer is for inference: run it under torch.no_grad(), as generate does"
            )
        layer, (ahead, future) = self._layers[index], self._ahead or (None, None)
        self._ahead = None
        values = future.result() if future is not None and ahead == index else layer.decode()
        if self._thread is not None:
            following = (index + 1) % len(self._layers)
            self._ahead = (following, self._thread.submit(self._layers[following].decode))
        layer.fill(values)
