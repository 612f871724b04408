"""Any causal or classification model of transformers, from a local folder or the Hugging Face hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rdo.errors import ConfigError, DataError
from rdo.integrations.folder import CAUSAL, CLASSIFIER, loader_of
from rdo.integrations.model_folder import configuration
from rdo_harness.architectures.base import Architecture, quiet_transformers, seeded
from rdo_harness.registries import ARCHITECTURES

if TYPE_CHECKING:
    from rdo_harness.tasks.base import Kind, Task

_HEADS = ("classifier", "pre_classifier", "score", "bert.pooler")
"""How the names of new weights begin in transformers' classes for classification."""


@dataclass(frozen=True)
class Pretrained(Architecture):
    """Options of a pretrained model; code that comes with a model is never run, nor a pickle opened.

    Attributes:
        path: a folder with config.json, safetensors weights and a tokenizer, or the name of a model on the hub.
        revision: commit or tag of the hub's model.
        max_length: the longest input, in tokens.
        gradient_checkpointing: forget activations and compute them again, for large models.
    """

    path: str = ""
    revision: str | None = None
    max_length: int = 128
    gradient_checkpointing: bool = False

    @property
    def title(self) -> str:
        return Path(self.path).name or self.name

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer()(list(texts), truncation=True, max_length=self.max_length)
        return [list(ids) for ids in found["input_ids"]]

    def encode_all(self, text: str) -> list[int]:
        return list(self.tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer().decode(list(ids)))

    @property
    def pad_id(self) -> int:
        tokenizer = self.tokenizer()
        known = [key for key in (tokenizer.pad_token_id, tokenizer.eos_token_id) if key is not None]
        return int(known[0]) if known else 0

    @property
    def begin_id(self) -> int | None:
        """The token that the model was taught to see first, if it has one."""
        begin: int | None = self.tokenizer().bos_token_id
        return begin

    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return _tokenizer(self.source(), self.revision, self.gguf_file())

    def source(self) -> str:
        """Where ``from_pretrained`` finds the model."""
        if not self.path:
            raise ConfigError(f"architecture {self.name!r} needs the option `path`: a folder, or a model on the hub")
        return self.path

    def gguf_file(self) -> str | None:
        """Name of the file to take the weights from, if they are not in safetensors."""
        return None

    @abstractmethod
    def load(self) -> torch.nn.Module:
        """The model as it is stored, in float32."""

    def _load(self, model_class: Any, new: tuple[str, ...] = (), **options: Any) -> torch.nn.Module:
        source, gguf_file = self.source(), self.gguf_file()
        options = {"dtype": torch.float32} | options
        options |= {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
        try:
            with quiet_transformers():
                loaded: Any = model_class.from_pretrained(
                    source,
                    revision=self.revision,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **options,
                )
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"the model {source!r} cannot be loaded: {error}") from error
        model, info = loaded
        # transformers only warns when it fills gaps with random weights
        missing = [key for key in info["missing_keys"] if not key.startswith(new)]
        if missing or info["mismatched_keys"]:
            raise DataError(
                f"the weights of {source!r} do not fit transformers' {type(model).__name__}: missing "
                f"{sorted(missing)}, mismatched {list(info['mismatched_keys'])}"
            )
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if gguf_file:  # what was loaded is floating-point, and a copy on disk must not say that it is gguf
            vars(model.config).pop("quantization_config", None)
        model.config.use_cache = False
        trained: torch.nn.Module = model.train()
        return trained


@ARCHITECTURES.register("hf")
@dataclass(frozen=True)
class HuggingFaceCausal(Pretrained):
    """A causal language model of transformers, by folder or by its name on the hub."""

    name: ClassVar[str] = "hf"
    kind: ClassVar[Kind] = "tokens"

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        task.check_kind(self)
        with seeded(seed):
            return self.load()

    def load(self) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        return self._load(AutoModelForCausalLM)

    def load_to_run(self, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The model in evaluation mode, default in the data type of its folder, which may be a compressed one."""
        from transformers import AutoModelForCausalLM

        import rdo.integrations.transformers  # noqa: F401  from_pretrained reads compressed folders from now on

        model = self._load(AutoModelForCausalLM, dtype="auto" if dtype is None else dtype).eval()
        config: Any = model.config
        config.use_cache = True
        return model


@ARCHITECTURES.register("hf-classifier")
@dataclass(frozen=True)
class HuggingFaceClassifier(Pretrained):
    """A model of transformers with a new classification head, by folder or by its name on the hub."""

    name: ClassVar[str] = "hf-classifier"
    kind: ClassVar[Kind] = "classification"

    def build(self, seed: int, task: Task) -> torch.nn.Module:
        from transformers import AutoModelForSequenceClassification

        task.check_kind(self)
        with seeded(seed):
            model = self._load(
                AutoModelForSequenceClassification,
                _HEADS,
                num_labels=task.num_labels,
            )
        config: Any = model.config
        config.pad_token_id = self.pad_id  # causal models find the last token of a text by it
        return model

    def load(self) -> torch.nn.Module:
        from transformers import AutoModelForSequenceClassification

        return self._load(AutoModelForSequenceClassification)


def local_model(source: Path, longest: int) -> Pretrained:
    """The model of a folder, as the class that its configuration names; texts are cut to ``longest`` tokens or less.

    Raises:
        ConfigError: it is neither a causal language model nor a classifier of one label.
    """
    config, kind = configuration(source)
    positions = getattr(config, "max_position_embeddings", None) or longest + 2
    length = min(positions - 2, longest)  # RoBERTa's begin at 2
    loader = loader_of(kind)
    if loader == CAUSAL:
        return HuggingFaceCausal(path=str(source), max_length=length)
    several = getattr(config, "problem_type", None) in ("regression", "multi_label_classification")
    if loader == CLASSIFIER and not several:
        return HuggingFaceClassifier(path=str(source), max_length=length)
    raise ConfigError(
        f"{source}: what can be run are causal language models (...ForCausalLM) and classifiers "
        f"(...ForSequenceClassification, one label each), not with {kind}"
        + (f" for {config.problem_type}" if several else "")
    )


@lru_cache(maxsize=4)
def _tokenizer(source: str, revision: str | None, gguf_file: str | None) -> Any:
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"the tokenizer of {source!r} cannot be loaded: {error}") from error
