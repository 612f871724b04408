"""AdamW with the rate term against float64."""

from __future__ import annotations

import torch
from torch import Tensor

import rdo_kernels
from rdo.entropy import EntropyModel
from rdo_harness.kernel_checks.samples import COUNTS, LAWS, check, same_moments, same_sum, theta_of, weights
from rdo_kernels import APPLY, AdamW


@check
def adamw_steps_follow_float64(device: torch.device, backend: str | None) -> None:
    """Three steps of each application against the formulas, over one launch of tensors with and without the rate.

    Laws that are nearly singular at zero are left out: there the rounding of a weight decides its slope. Of the others
    every second is enough: each is compared slope by slope elsewhere.
    """
    settings = AdamW(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-3, weight_decay=0.1, step=1)
    for family, values in [law for law in LAWS if getattr(law[0], "eps", 1.0) > 1e-3][::2]:
        theta = theta_of(values)
        for apply in APPLY:
            tensors, gradients = [weights(c, device) for c in COUNTS], [weights(c, device, seed=1) for c in COUNTS]
            firsts, seconds = [torch.zeros_like(t) for t in tensors], [torch.zeros_like(t) for t in tensors]
            doubles = [t.double().cpu() for t in tensors]
            means, squares = [torch.zeros_like(t) for t in doubles], [torch.zeros_like(t) for t in doubles]
            scale = 1e-5 if apply in ("gradient", "preconditioned") else 1e-4
            scales = [0.0 if number % 3 == 1 else scale for number in range(len(COUNTS))]
            for step in (1, 2, 3):
                now = settings._replace(step=step, gradient_factor=-0.5)
                bits, moments = rdo_kernels.adamw_step(
                    tensors,
                    gradients,
                    firsts,
                    seconds,
                    [now] * len(COUNTS),
                    family,
                    theta,
                    scales,
                    apply,
                    backend=backend,
                )
                rates = []
                for number, w in enumerate(doubles):
                    g = -0.5 * gradients[number].double().cpu()
                    rates.append(
                        _adamw_in_float64(
                            w, g, means[number], squares[number], now, family, theta, scales[number], apply
                        )
                    )
                same_sum(bits, torch.stack(rates))
            for found, w in zip((*tensors, *firsts, *seconds), (*doubles, *means, *squares), strict=True):
                torch.testing.assert_close(found.double().cpu(), w, rtol=2e-4, atol=2e-6)
            same_moments(moments, tensors, backend)


def _adamw_in_float64(
    w: Tensor,
    g: Tensor,
    mean: Tensor,
    square: Tensor,
    now: AdamW,
    family: EntropyModel,
    theta: Tensor,
    scale: float,
    apply: str,
) -> Tensor:
    """Update in place by the formulas of AdamW (Loshchilov and Hutter 2019) and return the rate in bits."""
    bits = torch.zeros((), dtype=torch.float64)
    if scale and apply == "gradient":
        bits = family.surrogate(w, theta).sum()
        g = g + scale * family.slope(w, theta)
    mean.mul_(now.beta1).add_(g, alpha=1 - now.beta1)
    square.mul_(now.beta2).add_(g * g, alpha=1 - now.beta2)
    divisor = (square / (1 - now.beta2**now.step)).sqrt() + now.eps
    w.mul_(1 - now.lr * now.weight_decay).sub_(now.lr * mean / (1 - now.beta1**now.step) / divisor)
    if scale and apply != "gradient":
        bits, slope = family.surrogate(w, theta).sum(), family.slope(w, theta)
        if apply == "decoupled":
            w.sub_(scale * slope)
        else:
            shrink = scale * slope.abs() / (divisor if apply == "preconditioned" else 1.0)
            w.copy_(w.sign() * (w.abs() - shrink).clamp(min=0.0))
    return bits
