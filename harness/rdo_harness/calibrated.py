"""``rdo compress --calibration TEXT``: a model of transformers rounded by what it does with some text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdo.calibration import mean_loss
from rdo.channels import ChannelSteps
from rdo.checkpoint import save_compressed
from rdo.compensated_rounding import CompensatedRounding
from rdo.errors import ConfigError, DataError
from rdo.quantizers import AllocatedQuantizer
from rdo.rounding_plan import Rounded
from rdo_harness.architectures.hugging_face import HuggingFaceClassifier, Pretrained, local_model

Progress = Callable[[int, int, str], None]

_TOKENS, _WINDOW = 32_768, 512
"""How much of the text a language model reads, and in pieces of which length, in tokens: at most."""
_LINES = 1024
"""Lines of it that a classifier reads."""


class CalibratedModel:
    """A model whose weights can be rounded to a size or to a loss, by compensated rounding (:mod:`rdo.rounding`).

    One passage is read at a time, so no padding enters the statistics. A language model's loss is that of the text's
    own tokens. A classifier needs no labels: they are drawn from its predictions, over which the Fisher information
    is a mean.

    Args:
        source: folder of a causal language model or of a classifier of transformers, with its tokenizer.
        tensors: what is stored in it, by name.
        text: UTF-8; for a classifier one example a line.
        hold_out: keep every fourth passage for :meth:`to_loss`.
        channels: see :class:`rdo.compensated_rounding.CompensatedRounding`.

    Raises:
        ConfigError: the model is neither, or its weights have other names than those stored.
        DataError: the text is not readable or too short; the model or its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        source: Path,
        tensors: dict[str, Tensor],
        text: Path,
        progress: Progress,
        *,
        hold_out: bool = False,
        channels: bool = False,
    ) -> None:
        reader = local_model(source, _WINDOW)
        if hold_out and isinstance(reader, HuggingFaceClassifier):
            raise ConfigError("--max-loss takes a language model; a text has no labels for a classifier: give --bits")
        passages = _passages(reader, text)
        self._held_out = passages[3::4] if hold_out else []
        if hold_out and not self._held_out:
            raise DataError(f"{text}: --max-loss needs four pieces of {_WINDOW} tokens at least, one to measure with")
        shown = [passage for number, passage in enumerate(passages) if not hold_out or number % 4 != 3]
        self._tensors, self._progress = tensors, progress
        self._model = reader.load().eval()
        self._stored = _stored_names(self._model, tensors, source)
        classifier = isinstance(reader, HuggingFaceClassifier)
        self._rounding = CompensatedRounding(
            self._model,
            _Passages(_labelled(self._model, shown) if classifier else shown, progress),
            _loss_of_label if classifier else _loss_of_tokens,
            compressible=lambda name, weight: weight.ndim >= 2 and name in self._stored,
            channels=channels,
        )

    def to_size(self, bits: float, **options: Any) -> tuple[dict[str, Tensor], AllocatedQuantizer]:
        """The stored tensors, rounded, and the steps of those that were, for ``save_compressed``.

        Args:
            bits: 8 times the bytes of the file over its parameters; met within 0.2 % from below.
            options: ``coder`` and ``raw_dtype`` of ``save_compressed``.

        Raises:
            ConfigError: no steps give this size.
        """

        self._progress(0, 1, "trying steps")
        return self._filled(self._rounding.search(bits, lambda rounded: self._size(rounded, bits, options)), bits)

    def to_loss(self, increase: float, **options: Any) -> tuple[dict[str, Tensor], AllocatedQuantizer]:
        """As :meth:`to_size`, as coarsely as the loss of the passages held out allows.

        Args:
            increase: of that loss, as a share.
            options: as for :meth:`to_size`.

        Raises:
            ConfigError: rounding to 7 bits a weight costs more.
        """
        most = (1.0 + increase) * mean_loss(self._model, self._held_out, _loss_of_tokens)

        def allowed(rounded: Rounded) -> bool:
            rounded.fill(self._model)
            found = mean_loss(self._model, self._held_out, _loss_of_tokens)
            self._progress(0, 1, f"trying steps ({found / most * (1.0 + increase) - 1.0:+.2%} loss)")
            return found <= most

        def size(rounded: Rounded) -> float:
            return self._size(rounded, rounded.entropy_bits(), options)

        self._progress(0, 1, "trying steps")
        rounded = self._rounding.coarsest(allowed, size)
        return self._filled(rounded, rounded.entropy_bits())

    def _size(self, rounded: Rounded, bits: float, options: dict[str, Any]) -> float:
        """Bits per parameter of the file."""
        state, quantizer = self._filled(rounded, bits)
        covered = quantizer.names
        info = save_compressed(
            state, None, quantizer=quantizer, compressible=lambda name, _: name in covered, **options
        )
        self._progress(0, 1, f"trying steps ({info.bits_per_parameter:.3f} bits)")
        return info.bits_per_parameter

    def _filled(self, rounded: Rounded, bits: float) -> tuple[dict[str, Tensor], AllocatedQuantizer]:
        result: dict[str, Tensor] = dict(self._tensors)
        steps: dict[str, float] = {}
        channels: dict[str, ChannelSteps] = {}
        for name, step in rounded.steps.items():
            copies = self._stored[name]
            value = rounded.weight(name).to(self._tensors[copies[0]].dtype)
            result |= dict.fromkeys(copies, value)  # tied ones stay one tensor
            if name in rounded.channels:
                channels |= dict.fromkeys(copies, rounded.channels[name])
            else:
                steps |= dict.fromkeys(copies, step)
        return result, AllocatedQuantizer(steps, bits, "sensitivity", channels=channels)


class _Passages:
    """Passages that are gone through several times, and shown each time."""

    def __init__(self, passages: Sequence[Any], progress: Progress) -> None:
        self._passages, self._progress = passages, progress

    def __iter__(self) -> Iterator[Any]:
        for done, passage in enumerate(self._passages):
            self._progress(done, len(self._passages), "reading the text")
            yield passage


@torch.no_grad()
def _labelled(model: nn.Module, passages: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Passages with labels, int64 [1], that the model as it is predicts, drawn by their probabilities."""
    generator = torch.Generator().manual_seed(0)
    chances = [model(input_ids=ids).logits.float().softmax(-1) for ids in passages]
    labels = [torch.multinomial(each, 1, generator=generator)[:, 0] for each in chances]
    return list(zip(passages, labels, strict=True))


def _loss_of_label(model: nn.Module, passage: tuple[Tensor, Tensor]) -> Tensor:
    ids, label = passage
    return nn.functional.cross_entropy(model(input_ids=ids).logits.float(), label)


def _loss_of_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross entropy of the tokens of a passage, each given those before."""
    logits: Tensor = model(input_ids=ids).logits.float()
    return nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])


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
        ids = [tokens[start : start + reader.max_length] for start in _spread(starts, _TOKENS // reader.max_length)]
        ids = ids or [tokens]  # a text shorter than a window
    ids = [one for one in ids if len(one) > 1]
    if not ids:
        raise DataError(f"{text}: no text to calibrate with; a few hundred lines like those that the model meets do")
    return [torch.tensor([one]) for one in ids]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


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
