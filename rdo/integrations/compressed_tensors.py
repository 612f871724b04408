"""Compressed folders as folders of compressed-tensors, from which vLLM and transformers run 4- and 8-bit models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rdo.checkpoint import CompressedFile, open_compressed
from rdo.checkpoint.container import Bytes, Entry, bytes_of, planned
from rdo.checkpoint.opened import target_dtype
from rdo.errors import ConfigError, IntegrationError
from rdo.integrations.exported import Exported, Levels, levels_of, refuse
from rdo.integrations.model_folder import PLAIN, compressed_file, model_without_memory, write_model

try:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
except ImportError as error:
    raise IntegrationError(
        f"this format needs the package compressed-tensors ({error}): pip install 'backslash-rdo[compressed-tensors]'"
    ) from error

_WIDTHS = (4, 8)


def export(source: Path, out: Path, *, allow_plain: bool = False) -> Exported:
    """Write the linear layers of a compressed folder as packed integers with a scale for each row; the rest as decoded.

    All get one width, 4 bits if every symbol fits and 8 otherwise: runtimes fuse layers, which then must agree. The
    scales are the steps, rounded to the data type of the weights, because runtimes compute with them in that.

    Args:
        source: a compressed model folder of transformers.
        out: the folder to write.
        allow_plain: store linear layers that do not fit 8 bits as plain numbers, instead of refusing.

    Raises:
        ConfigError: a tensor has too many levels, there is no quantised linear layer, or the model has tensors that
            transformers joins when it loads them (experts).
        CheckpointError, OSError: the folder cannot be read, or the other cannot be written.
    """
    exported = Exported(out / PLAIN)
    with open_compressed(compressed_file(source)) as compressed:
        compressed.check_output()
        linear = _linear_layers(source, compressed)
        fitting: dict[str, Levels] = {}
        for name, record in compressed.records.items():
            levels = levels_of(compressed, name) if name in linear else "no linear layer inside the model"
            if isinstance(levels, Levels) and levels.fit(_WIDTHS[-1]):
                fitting[name] = levels
            elif record.kind == "coded":
                if isinstance(levels, Levels) and not allow_plain:
                    refuse(name, levels, _WIDTHS[-1], compressed.path)
                exported.plain[name] = levels if isinstance(levels, str) else f"{levels.count:,} levels"
        tied = {owner for name, owner in compressed.owners.items() if name != owner}
        for name in fitting.keys() & tied:
            exported.plain[name] = "it is tied to another tensor"
            del fitting[name]
        if not fitting:
            why = next((f" ({name}: {exported.plain[name]})" for name in sorted(linear & exported.plain.keys())), "")
            raise ConfigError(
                f"{compressed.path}: no linear layer is quantised; `rdo decompress` writes plain weights{why}"
            )
        bits = next(width for width in _WIDTHS if all(levels.fit(width) for levels in fitting.values()))
        exported.quantised = dict.fromkeys(fitting, bits)
        left = sorted({name.removesuffix(".weight") for name in linear - fitting.keys()} | {"lm_head"})
        layers = {name: _Layer(compressed, name, levels, bits) for name, levels in fitting.items()}
        exported.largest_change = max(layer.largest_change() for layer in layers.values())
        entries: list[Entry] = []
        for name, owner in compressed.owners.items():
            entries += layers[name].entries() if name in layers else [_plain(compressed, name, owner)]

        def write(path: Path) -> None:
            planned(entries, {"format": "pt"}).write(path)

        exported.file = write_model(source, out, PLAIN, write, lambda text: _with_scheme(text, bits, left))
    exported.file_bytes = exported.file.stat().st_size
    return exported


@dataclass(frozen=True)
class _Layer:
    """A linear layer as compressed-tensors stores it (``pack-quantized``)."""

    compressed: CompressedFile
    name: str
    levels: Levels
    bits: int

    def entries(self) -> list[Entry]:
        rows, columns = self.compressed.records[self.name].size
        packed = (rows, -(-columns * self.bits // 32))
        scales, size = self._scales(), torch.tensor([rows, columns])
        return [
            Entry(f"{self.name}_packed", torch.int32, packed, self._packed),
            Entry(f"{self.name}_scale", scales.dtype, (rows, 1), lambda: [bytes_of(scales)]),
            Entry(f"{self.name}_shape", torch.int64, (2,), lambda: [bytes_of(size)]),
        ]

    def largest_change(self) -> float:
        scales = self._scales().double()
        return float((scales / self.levels.steps.double() - 1).abs().max())

    def _scales(self) -> torch.Tensor:
        return self.levels.steps.to(self.compressed.records[self.name].group.dtype).contiguous()

    def _packed(self) -> Iterable[Bytes]:
        symbols = self.compressed.quantized(self.name).symbols.to(torch.int8)
        return [bytes_of(pack_to_int32(symbols, self.bits))]


def _plain(compressed: CompressedFile, name: str, owner: str) -> Entry:
    record = compressed.records[owner]
    return Entry(name, target_dtype(record, None), record.size, lambda: [bytes_of(compressed.tensor(owner))])


def _linear_layers(source: Path, compressed: CompressedFile) -> set[str]:
    """The names of the weights of ``nn.Linear`` in the model of a folder, which is built without memory; the output
    layer, which the format leaves plain by custom, is not among them."""
    model: Any = model_without_memory(source)
    known = model.state_dict().keys()
    strange = next((name for name in compressed.records if name not in known), None)
    if strange is not None:
        raise ConfigError(
            f"{compressed.path}: transformers has no parameter {strange!r} in a {type(model).__name__}, as with "
            "experts, which it joins; such models cannot be exported to this format. `rdo decompress` writes plain "
            "weights"
        )
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _with_scheme(text: str, bits: int, left: list[str]) -> str:
    """A config.json with the entry by which transformers and vLLM know what they load."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": left,
    }
    return json.dumps({**json.loads(text), "quantization_config": scheme}, indent=2) + "\n"
