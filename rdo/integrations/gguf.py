"""Compressed folders as GGUF files, which llama.cpp runs: Llama models, SmolLM2 among them."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdo.checkpoint import CompressedFile, open_compressed
from rdo.checkpoint.container import bytes_of
from rdo.checkpoint.manifest import Record
from rdo.checkpoint.opened import target_dtype
from rdo.errors import ConfigError, IntegrationError
from rdo.files import explain_full_disk
from rdo.integrations.exported import Exported, Levels, levels_of, refuse
from rdo.integrations.gguf_blocks import BLOCK, WIDTHS, pack
from rdo.integrations.model_folder import compressed_file, configuration

try:
    import gguf

    from rdo.integrations.gguf_tokenizer import add_tokenizer
except ImportError as error:
    raise IntegrationError(
        f"this format needs the package gguf ({error}): pip install 'backslash-rdo[gguf]'"
    ) from error

_MODEL = "LlamaForCausalLM"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PLAIN = {torch.float16: "F16", torch.bfloat16: "BF16"}
_SCALE_CHANGE = 2.0**-11
"""What rounding a step to float16 changes it by, at most, unless the step is too large or too small for float16."""


def export(source: Path, out: Path, *, allow_plain: bool = False) -> Exported:
    """Write a compressed folder as a GGUF file; each quantised matrix in the narrowest type that holds its symbols.

    These are Q4_0 (-8 to 7), Q5_0 (-16 to 15) and Q8_0 (-128 to 127): blocks of 32 neighbours in a row, a weight being
    its symbol times the block's scale. The scale is the step, rounded to float16. Other tensors are stored as decoded:
    vectors as float32, matrices in their own data type or, where llama.cpp has none, as float32.

    Args:
        source: a compressed model folder of transformers, of a Llama model.
        out: the file to write; it appears when it is complete.
        allow_plain: store matrices with more than 256 levels as plain numbers, instead of refusing.

    Raises:
        ConfigError: another kind of model or tokenizer, or a tensor with too many levels.
        CheckpointError, OSError: the folder cannot be read, or the file cannot be written.
    """
    config = _llama_config(source)
    exported = Exported(out)
    with open_compressed(compressed_file(source)) as compressed:
        compressed.check_output()
        tensors = _tensors(compressed, config, exported, allow_plain=allow_plain)
        with (
            explain_full_disk(out.resolve().parent, f"cannot write {out}"),
            tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}.", suffix=".tmp") as folder,
        ):
            staged = Path(folder) / "model.gguf"
            writer = gguf.GGUFWriter(staged, "llama")
            try:
                _describe(writer, source, config, tensors)
                for name, tensor in tensors.items():
                    writer.add_tensor_info(name, tensor.size, np.dtype(np.uint8), math.prod(tensor.size), tensor.kind)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for tensor in tensors.values():
                    writer.write_tensor_data(tensor.data())
            finally:
                writer.close()
            os.replace(staged, out)
    exported.file_bytes = out.stat().st_size
    return exported


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: its type, its size in bytes along each axis of the matrix, and the bytes."""

    kind: gguf.GGMLQuantizationType
    size: tuple[int, ...]
    data: Callable[[], NDArray[np.uint8]]


def _tensors(compressed: CompressedFile, config: Any, exported: Exported, *, allow_plain: bool) -> dict[str, _Tensor]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors: dict[str, _Tensor] = {}
    for name, owner in compressed.owners.items():
        if name.endswith("rotary_emb.inv_freq") or (name == _HEAD and owner == compressed.owners.get(_EMBEDDING)):
            continue  # computed, and tied
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ConfigError(f"{compressed.path}: a Llama model of llama.cpp has no tensor for {name!r}")
        record = compressed.records[owner]
        order = _order(name, record.size[0] if record.size else 1, config)
        levels = levels_of(compressed, owner) if record.kind == "coded" else "it was not quantised"
        if isinstance(levels, Levels):
            levels = _unfit(levels, record) or levels
        if isinstance(levels, Levels) and levels.fit(max(WIDTHS)):
            bits = next(width for width in WIDTHS if levels.fit(width))
            tensors[found] = _quantised(compressed, owner, levels, bits, order)
            exported.quantised[name] = bits
            exported.largest_change = max(exported.largest_change, _change(levels.steps))
            continue
        if record.kind == "coded":
            if isinstance(levels, Levels) and not allow_plain:
                refuse(name, levels, max(WIDTHS), compressed.path)
            exported.plain[name] = levels if isinstance(levels, str) else f"{levels.count:,} levels"
        tensors[found] = _plain(compressed, owner, record, order)
    return tensors


def _unfit(levels: Levels, record: Record) -> str | None:
    """Why a matrix cannot be in blocks, whatever its symbols."""
    if record.size[1] % BLOCK:
        return f"its rows of {record.size[1]:,} weights are no multiple of {BLOCK}"
    if not _change(levels.steps) <= _SCALE_CHANGE:
        return f"float16 has no number near its step {float(levels.steps.min()):.3g}"
    return None


def _change(steps: Tensor) -> float:
    """Of the steps, relative, when they are rounded to float16."""
    exact = steps.to(torch.float64)
    return float((steps.to(torch.float16).to(torch.float64) / exact - 1.0).abs().max())


def _quantised(compressed: CompressedFile, owner: str, levels: Levels, bits: int, order: Tensor | None) -> _Tensor:
    kind = gguf.GGMLQuantizationType[WIDTHS[bits]]
    rows, columns = compressed.records[owner].size
    steps = levels.steps.to(torch.float16)

    def data() -> NDArray[np.uint8]:
        symbols = compressed.quantized(owner).symbols
        if order is not None:
            return pack(symbols[order].numpy(), steps[order].numpy(), bits)
        return pack(symbols.numpy(), steps.numpy(), bits)

    return _Tensor(kind, gguf.quant_shape_to_byte_shape((rows, columns), kind), data)


def _plain(compressed: CompressedFile, owner: str, record: Record, order: Tensor | None) -> _Tensor:
    dtype = target_dtype(record, None)
    if len(record.size) < 2 or dtype not in _PLAIN:
        dtype = torch.float32
    kind = gguf.GGMLQuantizationType[_PLAIN.get(dtype, "F32")]

    def data() -> NDArray[np.uint8]:
        tensor = compressed.tensor(owner)
        return bytes_of((tensor if order is None else tensor[order]).to(dtype))

    return _Tensor(kind, (*record.size[:-1], record.size[-1] * dtype.itemsize), data)


def _order(name: str, rows: int, config: Any) -> Tensor | None:
    """Where the rows of queries and keys come from: llama.cpp rotates neighbours, transformers the halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in name.split(".") if part in heads), None)
    return None if count is None else torch.arange(rows).reshape(count, 2, -1).transpose(1, 2).reshape(-1)


def _llama_config(source: Path) -> Any:
    config, kind = configuration(source)
    if kind != _MODEL:
        raise ConfigError(
            f"{source}: to GGUF only {_MODEL} is exported, not {kind}; use llama.cpp's own converter on the folder "
            "that `rdo decompress` writes"
        )
    rotation = _rotation(config)
    if rotation.get("rope_type", rotation.get("type", "default")) != "default":
        raise ConfigError(f"{source}: positions with rope_type {rotation.get('rope_type')!r} are not exported to GGUF")
    return config


def _rotation(config: Any) -> dict[str, Any]:
    """How positions are encoded; transformers 4 and 5 have it in different places."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", None), **found}


def _describe(writer: Any, source: Path, config: Any, tensors: dict[str, _Tensor]) -> None:
    """Write what llama.cpp must know of the model and of its tokenizer."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.kind.name] += math.prod(tensor.size)
    most = sizes.most_common(1)[0][0]
    writer.add_name(source.resolve().name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if most == "F32" else gguf.LlamaFileType[f"MOSTLY_{most}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rotation(config)["rope_theta"] or 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_tokenizer(writer, source, config.vocab_size)
