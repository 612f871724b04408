"""A loss that also asks a model to answer as another does, such as itself before it was rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from rdo.errors import ConfigError


def distilled_loss(
    loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    counted: Tensor | None = None,
    *,
    share: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """``(1 - share) * loss + share * T^2 * KL(teacher || student)``, both softened by the temperature T.

    After Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2. Goes
    with any way of training, to a size too: ``handle = rdo.attach(...)`` acts on the gradient, whatever the loss is.

    Args:
        loss: a scalar, of the labels.
        logits: of the model that is trained, floating point [..., classes].
        targets: those of the teacher, of the same size; take them in evaluation mode without gradients.
        counted: bool [...], the positions that count (padding does not); all of them by default.
        share: weight of the teacher, from 0 to 1.
        temperature: positive.

    Returns:
        A scalar of the loss's data type; its second part is the mean over what counts, in nats.

    Raises:
        ConfigError: sizes differ, nothing counts, or an option is out of its range.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"the teacher's share must be from 0 to 1, got {share}")
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(f"a temperature must be a positive number, got {temperature}")
    if logits.shape != targets.shape:
        raise ConfigError(f"the teacher's logits are of size {list(targets.shape)}, the model's {list(logits.shape)}")
    if counted is not None and counted.shape != logits.shape[:-1]:
        raise ConfigError(f"`counted` is of size {list(counted.shape)}, the positions are {list(logits.shape[:-1])}")
    if counted is not None:
        logits, targets = logits[counted], targets[counted]
    if logits.numel() == 0:
        raise ConfigError("there is no position that counts")
    mine, own = (torch.log_softmax(x.to(torch.float32) / temperature, dim=-1) for x in (logits, targets.detach()))
    divergence = (own.exp() * (own - mine)).sum(-1).mean()
    return (1.0 - share) * loss + (share * temperature**2 * divergence).to(loss.dtype)
