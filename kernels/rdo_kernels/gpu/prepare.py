"""What every tensor's step is made of, worked out on the device from the sums that the last step left.

One launch of at most 128 programs adds up the chunks in order, fits the laws and corrects Adam's bias, so that neither
the number of tensors nor the host's clock enters the time of a step, and a CUDA graph can hold it.
"""

from __future__ import annotations

import triton
import triton.language as tl

PROGRAMS = 128


@triton.jit
def _finite(x):  # type: ignore[no-untyped-def]
    return (x - x) == 0.0


@triton.jit
def _sums_of_all(sums, chunks, members, rows):  # type: ignore[no-untyped-def]
    """Sums over the chunks of all covered tensors: sum |w|, sum w^2, zeros, max |w|; scalars."""
    offsets = tl.arange(0, 256)
    sum_abs = tl.zeros((256,), tl.float64)
    sum_sq, zeros, largest = sum_abs, sum_abs, sum_abs
    for start in range(0, rows, 256):
        at = (start + offsets).to(tl.int64)
        inside = at < rows
        tensor = tl.load(chunks + 3 * at + 1, mask=inside, other=0)
        inside = inside & (tl.load(members + 2 * tensor + 1) != 0)
        sum_abs += tl.load(sums + 4 * at, mask=inside, other=0.0)
        sum_sq += tl.load(sums + 4 * at + 1, mask=inside, other=0.0)
        zeros += tl.load(sums + 4 * at + 2, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.load(sums + 4 * at + 3, mask=inside, other=0.0))
    return tl.sum(sum_abs), tl.sum(sum_sq), tl.sum(zeros), tl.max(largest)


@triton.jit
def _sums_of_each(sums, begin, end, TENSORS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same over the chunks of each of a block of tensors; [TENSORS]."""
    offsets = tl.arange(0, LANES)
    sum_abs = tl.zeros((TENSORS, LANES), tl.float64)
    sum_sq, zeros, largest = sum_abs, sum_abs, sum_abs
    most = tl.max(end - begin)
    for start in range(0, most, LANES):
        at = begin[:, None] + start + offsets[None, :]
        inside = at < end[:, None]
        sum_abs += tl.load(sums + 4 * at, mask=inside, other=0.0)
        sum_sq += tl.load(sums + 4 * at + 1, mask=inside, other=0.0)
        zeros += tl.load(sums + 4 * at + 2, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.load(sums + 4 * at + 3, mask=inside, other=0.0))
    return tl.sum(sum_abs, axis=1), tl.sum(sum_sq, axis=1), tl.sum(zeros, axis=1), tl.max(largest, axis=1)


@triton.jit(do_not_specialize=["tensors", "rows"])
def prepare(  # type: ignore[no-untyped-def]
    sums,  # float64 [rows, 4], of the chunks as they were last written
    chunks,  # int64 [rows, 3]
    bounds,  # int64 [tensors, 2]
    counts,  # float64 [tensors]
    members,  # int64 [tensors, 2]: group, and 1 if the rate term covers the tensor
    controls,  # float64 [groups, 7], see rdo_kernels.fused.Control
    strength,  # float64 [1] or [tensors]: lambda over the number of covered weights
    loss_scale,  # float32 [1]
    overflow,  # float32 [1], not 0 if gradients are infinite: the step is skipped
    options,  # what ``fit`` is given
    steps,  # float32 [tensors], counted up
    laws,  # float32 [tensors, PARAMETERS + 3], written
    factors,  # float32 [tensors, 8], written
    fitted,  # float64 [tensors, 5], the moments that a law was fitted to, written
    alarms,  # int32 [programs], 1 where covered weights are not finite: their rate term is left out
    total,  # float64 [1], number of covered weights
    tensors,
    rows,
    fit: tl.constexpr,  # None where ``laws`` holds theta already
    PARAMETERS: tl.constexpr,
    POOLED: tl.constexpr,
    FOLLOWS: tl.constexpr,
    STRENGTHS: tl.constexpr,
    TENSORS: tl.constexpr,
):
    """Prepare the steps of ``TENSORS`` tensors."""
    own = tl.program_id(0).to(tl.int64) * TENSORS + tl.arange(0, TENSORS)
    here = own < tensors
    group = tl.load(members + 2 * own, mask=here, other=0)
    covered = here & (tl.load(members + 2 * own + 1, mask=here, other=0) != 0)

    # The moments, for the law.
    if POOLED:
        nothing = tl.zeros((TENSORS,), tl.float64)
        sum_abs, sum_sq, zeros, largest = _sums_of_all(sums, chunks, members, rows)
        sum_abs, sum_sq, zeros, largest = sum_abs + nothing, sum_sq + nothing, zeros + nothing, largest + nothing
        count = tl.load(total) + nothing
    else:
        begin = tl.load(bounds + 2 * own, mask=here, other=0)
        end = tl.load(bounds + 2 * own + 1, mask=here, other=0)
        sum_abs, sum_sq, zeros, largest = _sums_of_each(
            sums, begin, end, TENSORS, 8 if TENSORS > 128 else 1024 // TENSORS
        )
        count = tl.load(counts + own, mask=here, other=0.0)
    moments = count, sum_abs, sum_sq, zeros, largest
    for column in tl.static_range(5):
        tl.store(fitted + 5 * own + column, moments[column], mask=here)
    sound = _finite(sum_abs) & _finite(sum_sq)
    tl.store(alarms + tl.program_id(0), tl.max((covered & (sound == 0)).to(tl.int32)))

    # The factor of the slope.
    control = controls + 7 * group
    lr = tl.load(control)
    if STRENGTHS:
        scale = tl.load(strength + own, mask=here, other=0.0)
    else:
        scale = tl.load(strength) + tl.zeros((TENSORS,), tl.float64)
    if FOLLOWS == 1:
        scale *= lr
    elif FOLLOWS == 2:
        scale *= lr / tl.load(control + 6)
    scale = tl.where(covered & sound, scale, 0.0)
    law = laws + own * (PARAMETERS + 3)
    tl.store(law + PARAMETERS, scale.to(tl.float32), mask=here)
    tl.store(law + PARAMETERS + 1, tl.full((TENSORS,), 1.0, tl.float32), mask=here)
    tl.store(law + PARAMETERS + 2, tl.zeros((TENSORS,), tl.float32), mask=here)
    if fit is not None:
        theta = fit(moments, options)
        for parameter in tl.static_range(PARAMETERS):
            value = tl.where(scale == 0.0, 1.0, theta[parameter])  # whatever it is, times 0 it must be 0
            tl.store(law + parameter, value.to(tl.float32), mask=here)

    # AdamW's factors.
    skip = tl.load(overflow) != 0.0
    beta1, beta2 = tl.load(control + 1), tl.load(control + 2)
    step = tl.load(steps + own, mask=here, other=0.0) + tl.where(skip, 0.0, 1.0)
    tl.store(steps + own, step, mask=here)
    step = tl.maximum(step, 1.0).to(tl.float64)
    correction1 = 1.0 - tl.exp2(step * tl.log2(beta1))
    correction2 = 1.0 - tl.exp2(step * tl.log2(beta2))
    sign = tl.load(control + 5) / tl.load(loss_scale).to(tl.float64)
    numbers = (
        1.0 - lr * tl.load(control + 4),
        beta1,
        beta2,
        lr / correction1,
        1.0 / tl.sqrt(correction2),
        tl.load(control + 3),
        sign,
        tl.where(skip, 1.0, 0.0) + tl.zeros((TENSORS,), tl.float64),
    )
    for column in tl.static_range(8):
        tl.store(factors + 8 * own + column, numbers[column].to(tl.float32), mask=here)
