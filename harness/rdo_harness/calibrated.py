"""``rdo compress --calibration TEXT``: a model of transformers rounded to a size by what it does with some text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdo.checkpoint.trial import written_for_trial
from rdo.errors import ConfigError, DataError
from rdo.quantizers import AllocatedQuantizer
from rdo.rounding import CompensatedRounding, Rounded
from rdo_harness.architectures.hugging_face import HuggingFaceClassifier, Pretrained, local_model

Progress = Callable[[int, int, str], None]

_WINDOWS, _WINDOW = 64, 512
"""Pieces of the text that a language model reads, and their length in tokens."""
_LINES = 256
"""Lines of it that a classifier reads."""


def rounded_to_size(
    source: Path, tensors: dict[str, Tensor], text: Path, bits: float, progress: Progress, **options: Any
) -> tuple[dict[str, Tensor], AllocatedQuantizer]:
    """Round the weights of a model such that its file has a size, by compensated rounding (:mod:`rdo.rounding`).

    One passage is read at a time, so no padding enters the statistics. A language model's loss is that of the text's
    own tokens. A classifier needs no labels: they are drawn from its predictions, over which the Fisher information
    is a mean.

    Args:
        source: folder of a causal language model or of a classifier of transformers, with its tokenizer.
        tensors: what is stored in it, by name.
        text: UTF-8; for a classifier one example a line.
        bits: 8 times the bytes of the file over its parameters.
        options: ``coder`` and ``raw_dtype`` of ``save_compressed``.

    Returns:
        The tensors, rounded, and the steps of those that were, for ``save_compressed``.

    Raises:
        ConfigError: the model is neither, its weights have other names than those stored, or it cannot have this size.
        DataError: the text is not readable or too short; the model or its tokenizer cannot be loaded.
    """
    reader = local_model(source, _WINDOW)
    passages = _passages(reader, text)
    model = reader.load().eval()
    stored = _stored_names(model, tensors, source)
    loss = _Loss(isinstance(reader, HuggingFaceClassifier))
    rounding = CompensatedRounding(
        model,
        _counted(passages, progress),
        loss,
        compressible=lambda name, weight: weight.ndim >= 2 and name in stored,
    )
    del model

    def filled(rounded: Rounded) -> tuple[dict[str, Tensor], AllocatedQuantizer]:
        result: dict[str, Tensor] = dict(tensors)
        steps: dict[str, float] = {}
        for name, step in rounded.steps.items():
            value = rounded.weight(name).to(tensors[stored[name][0]].dtype)
            result |= dict.fromkeys(stored[name], value)  # tied ones stay one tensor
            steps |= dict.fromkeys(stored[name], step)
        return result, AllocatedQuantizer(steps, bits, "sensitivity")

    trials = 0

    def measure(rounded: Rounded) -> float:
        nonlocal trials
        trials += 1
        progress(0, 1, f"trying steps ({trials})")
        state, quantizer = filled(rounded)
        covered = quantizer.step_of.keys()
        info = written_for_trial(state, quantizer=quantizer, compressible=lambda name, _: name in covered, **options)
        return info.bits_per_parameter

    progress(0, 1, "rounding")
    return filled(rounding.search(bits, measure))


class _Loss:
    """Mean cross entropy of the tokens of a passage, or of a label that the model itself predicts."""

    def __init__(self, classifier: bool) -> None:
        self._classifier = classifier
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, model: nn.Module, ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids).logits.float()
        if not self._classifier:
            return nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=self._generator)
        return nn.functional.cross_entropy(logits, drawn[:, 0])


def _passages(reader: Pretrained, text: Path) -> list[Tensor]:
    """Token numbers int64 [1, length], spread evenly over the text."""
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text}: not readable as UTF-8 text ({error})") from error
    if isinstance(reader, HuggingFaceClassifier):
        lines = [line for line in content.splitlines() if line.strip()]
        ids = reader.encode(_spread(lines, _LINES))
    else:
        tokens = reader.encode_all(content)
        starts = range(0, len(tokens) - reader.max_length + 1, reader.max_length)
        ids = [tokens[start : start + reader.max_length] for start in _spread(starts, _WINDOWS)]
        ids = ids or [tokens]  # a text shorter than a window
    ids = [one for one in ids if len(one) > 1]
    if not ids:
        raise DataError(f"{text}: no text to calibrate with; a few hundred lines like those that the model meets do")
    return [torch.tensor([one]) for one in ids]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def _counted(passages: list[Tensor], progress: Progress) -> Iterator[Tensor]:
    for done, passage in enumerate(passages):
        progress(done, len(passages), "calibrating")
        yield passage


def _stored_names(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> dict[str, list[str]]:
    """For each parameter of the model, the names under which the file has it: several if it is tied."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        aliases.setdefault(tensor.data_ptr(), []).append(name)
    stored = {}
    for name, parameter in model.named_parameters():
        known = [own if own in tensors else own.removeprefix(prefix) for own in aliases[parameter.data_ptr()]]
        known = [own for own in known if own in tensors and tensors[own].shape == parameter.shape]
        if known:
            stored[name] = known
    if not any(model.get_parameter(name).ndim >= 2 for name in stored):
        raise ConfigError(
            f"{source}: transformers' {type(model).__name__} has none of the stored matrices under the name and size "
            "that the file gives them; save the model with this version of transformers, then compress it"
        )
    return stored
