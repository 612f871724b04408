"""The tokenizer of a model folder as metadata of a GGUF file: byte-level BPE, as Llama 3 and SmolLM2 have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from rdo.errors import ConfigError

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITTERS = {
    ("ByteLevel words",): "gpt-2",
    ("Digits", "ByteLevel words"): "smollm",
    (_LLAMA_3, "ByteLevel"): "llama-bpe",
}
"""llama.cpp's names of how texts are split into words before BPE, by the steps of a tokenizer.json."""


def add_tokenizer(writer: Any, folder: Path, size: int) -> bool:
    """Add tokens, merges, special tokens and the chat template; False if the folder has no tokenizer.

    Args:
        writer: a ``gguf.GGUFWriter``.
        size: rows of the embedding; those without a token are called unused.

    Raises:
        ConfigError: a tokenizer of another kind, or more tokens than rows.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        writer.add_tokenizer_model("none")
        return False
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        model, added = described["model"], described.get("added_tokens") or []
        splitter = _splitter(described.get("pre_tokenizer"))
        if model["type"] != "BPE" or model.get("byte_fallback") or splitter is None or described.get("normalizer"):
            raise ConfigError(
                f"{file}: only byte-level BPE tokenizers that split texts as GPT-2, SmolLM or Llama 3 do can be "
                "exported to GGUF; use llama.cpp's own converter on the folder that `rdo decompress` writes"
            )
        kinds = dict.fromkeys(model["vocab"], gguf.TokenType.NORMAL)
        ids = {str(token): int(index) for token, index in model["vocab"].items()}
        for token in added:
            ids[token["content"]] = int(token["id"])
            kinds[token["content"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: not a tokenizer of the tokenizers library ({error!r})") from error
    names = {index: token for token, index in ids.items()}
    if names and not 0 <= min(names) <= max(names) < size:
        raise ConfigError(f"{file}: has token {max(names):,}, but the model's embedding has {size:,} rows")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(size)])
    unused = gguf.TokenType.UNUSED
    writer.add_token_types([kinds[names[index]] if index in names else unused for index in range(size)])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)
    return True


def _splitter(described: Any) -> str | None:
    steps = described.get("pretokenizers", [described]) if isinstance(described, dict) else []
    return _SPLITTERS.get(tuple(_step(step) for step in steps))


def _step(described: dict[str, Any]) -> str:
    """What a step of pre-tokenisation does, in a word; one that is not known gives its settings."""
    kind = described.get("type")
    if kind == "ByteLevel" and not described.get("add_prefix_space"):
        return "ByteLevel words" if described.get("use_regex", True) else "ByteLevel"
    if kind == "Digits" and described.get("individual_digits"):
        return "Digits"
    if kind == "Split" and described.get("behavior") == "Isolated" and not described.get("invert"):
        return str(described.get("pattern", {}).get("Regex"))
    return json.dumps(described)
