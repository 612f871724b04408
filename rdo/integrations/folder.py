"""A model folder as the Hugging Face hub lays it out, its weights in one compressed checkpoint.

Its config.json says so in an entry that :func:`mark_config` adds and :func:`unmark_config` takes out again.
"""

from __future__ import annotations

import json
from typing import Any

WEIGHTS = "model.rdo"
"""Name of the compressed checkpoint in a folder. The suffix .rdo keeps loaders of plain safetensors away from it."""
METHOD = "rdo"
"""``quantization_config["quant_method"]`` of such a folder."""

CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
_LOADERS = {"ForCausalLM": CAUSAL, "LMHeadModel": CAUSAL, "ForSequenceClassification": CLASSIFIER}

_KEY = "quantization_config"
_VALUE = {"quant_method": METHOD, "weights": WEIGHTS, "load_with": "import rdo.integrations.transformers"}
_ENTRY = f"\n  {json.dumps(_KEY)}: " + json.dumps(_VALUE, indent=2).replace("\n", "\n  ") + ","


def loader_of(architecture: str) -> str | None:
    """The class of transformers that loads models of another class, one of config.json's ``architectures``.

    None unless it is a causal language model or a classifier, as the ending of the name says.
    """
    return next((loader for ending, loader in _LOADERS.items() if architecture.endswith(ending)), None)


def mark_config(text: str) -> str:
    """Add the entry to the text of a config.json, whose other bytes stay as they are.

    A text that is not the configuration of a model, or already has a ``quantization_config``, is returned as it is.
    """
    config = _parse(text)
    if not config or _KEY in config:
        return text
    brace = text.index("{") + 1
    return text[:brace] + _ENTRY + text[brace:]


def unmark_config(text: str) -> str:
    """What :func:`mark_config` was given; of a file that another program wrote anew, the same without the entry."""
    value = _parse(text).get(_KEY)
    if not isinstance(value, dict) or value.get("quant_method") != METHOD:
        return text
    if _ENTRY in text:
        return text.replace(_ENTRY, "", 1)
    return json.dumps({key: value for key, value in _parse(text).items() if key != _KEY}, indent=2) + "\n"


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
