"""Rounding a trained model: to an entropy, to the size of a file, or as coarsely as a loss allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdo.calibration import mean_loss
from rdo.channel_sensitivity import tells_channels
from rdo.checkpoint import save_compressed
from rdo.checkpoint.writer import Coder
from rdo.compensated_rounding import CompensatedRounding
from rdo.errors import ConfigError
from rdo.quantizers import AllocatedQuantizer
from rdo.rounding_plan import Rounded


def round_to_entropy(
    model: nn.Module,
    bits: float,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    price: float = 0.0,
    compressible: Callable[[str, Tensor], bool] | None = None,
) -> AllocatedQuantizer:
    """Round a trained model's weights in place such that their symbols have an entropy of ``bits`` a weight.

    Args:
        bits: order-0 entropy of the symbols, tensor by tensor, in bits per coded weight; met within 0.2 % from below.
        batches, loss, price, compressible: see :class:`rdo.compensated_rounding.CompensatedRounding`.

    Returns:
        The steps, for ``save_compressed``: it gives the rounded weights their symbols.

    Raises:
        ConfigError: nothing to round, no calibration data, or no steps give this entropy.
    """
    rounding = CompensatedRounding(model, batches, loss, price=price, compressible=compressible)
    rounded = rounding.search(bits, Rounded.entropy_bits)
    rounded.fill(model)
    return rounded.quantizer(bits)


def round_to_size(
    model: nn.Module,
    bits_per_parameter: float,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    price: float = 0.0,
    compressible: Callable[[str, Tensor], bool] | None = None,
    coder: Coder | Sequence[Coder] = "rans",
    raw_dtype: torch.dtype | None = None,
) -> AllocatedQuantizer:
    """Round a trained model's weights in place such that its file has this size: our method after training.

    Args:
        bits_per_parameter: ``8 * file_bytes / parameters``, the whole file over all stored parameters; met within 0.2 %
            from below, by the sizes of whole files.
        batches, loss, price, compressible: see :class:`rdo.compensated_rounding.CompensatedRounding`.
        coder, raw_dtype: as for ``save_compressed``, which is to be given the same. With ``"context"`` among several,
            rows or columns have steps of their own where the batches' loss is less for it.

    Returns:
        The steps, for ``save_compressed``.

    Raises:
        ConfigError: nothing to round, no calibration data, or no steps give this size. The model is as it was then.
    """
    rounding = CompensatedRounding(
        model, batches, loss, price=price, compressible=compressible, channels=tells_channels(coder)
    )

    def size(rounded: Rounded) -> float:
        return _bits_per_parameter(
            model, rounded, bits_per_parameter, coder=coder, raw_dtype=raw_dtype, compressible=compressible
        )

    rounded = rounding.search(bits_per_parameter, size)
    rounded.fill(model)
    return rounded.quantizer(bits_per_parameter)


def round_to_loss(
    model: nn.Module,
    increase: float,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    held_out: Sequence[Any],
    *,
    price: float = 0.0,
    compressible: Callable[[str, Tensor], bool] | None = None,
    coder: Coder | Sequence[Coder] = "rans",
) -> AllocatedQuantizer:
    """Round a trained model's weights in place, as coarsely as a loss allows: the smallest file of this quality.

    Args:
        increase: of the mean loss on the held-out batches, relative to that of the model as it is; 0.01 for 1 %.
        batches, loss, price, compressible: see :class:`rdo.compensated_rounding.CompensatedRounding`.
        held_out: batches that are not among those.
        coder: as for :func:`round_to_size`.

    Returns:
        The steps, for ``save_compressed``.

    Raises:
        ConfigError: nothing to round, no batches, or rounding to 7 bits a weight costs more. The model is as it was.
    """
    if not held_out or not 0.0 < increase < math.inf:
        raise ConfigError(f"give held-out batches and a positive increase, got {len(held_out)} and {increase:g}")
    rounding = CompensatedRounding(
        model, batches, loss, price=price, compressible=compressible, channels=tells_channels(coder)
    )
    most = (1.0 + increase) * mean_loss(model, held_out, loss)

    def allowed(rounded: Rounded) -> bool:
        rounded.fill(model)
        return mean_loss(model, held_out, loss) <= most

    def size(rounded: Rounded) -> float:
        return _bits_per_parameter(model, rounded, rounded.entropy_bits(), coder=coder, compressible=compressible)

    rounded = rounding.coarsest(allowed, size)
    rounded.fill(model)
    return rounded.quantizer(rounded.entropy_bits())


def _bits_per_parameter(model: nn.Module, rounded: Rounded, bits: float, **options: Any) -> float:
    """Of the file, which is coded but not written; the model is left with the rounded weights."""
    rounded.fill(model)
    return save_compressed(model, None, quantizer=rounded.quantizer(bits), **options).bits_per_parameter
