"""Weight-only quantisation of optimum-quanto. Options: ``bits`` (8, 4, 2) and ``group_size``; needs no data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peer_job import Answer, Job, main


def work(job: Job) -> Answer:
    """Quantise every matrix by itself: 8 bits in rows, symmetric; fewer in groups or rows, with real zero points."""
    from optimum import quanto
    from optimum.quanto.library.extensions import get_extension

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=_unpack)  # its C++ is compiled at first use, for minutes
    answer = Answer(packages=("optimum-quanto",))
    bits, size = job.options["bits"], job.options["group_size"]
    for name, weight in job.weights().items():
        layers = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        layers[0].weight.data = weight
        quanto.quantize(layers, weights=getattr(quanto, f"qint{bits}"))
        layer: Any = layers[0]
        layer.weight_group_size = size or None  # it would choose 128, or less where that does not divide a row
        quanto.freeze(layers)
        found = layer.weight.detach()  # a subclass of Tensor
        answer.tensors[name] = found.dequantize()
        answer.tensors[f"{name}.scale"] = found._scale.reshape(len(weight), -1)
        answer.native_bytes += weight.numel() * bits // 8 + 2 * found._scale.numel()
        if bits < 8:
            answer.tensors[f"{name}.zero_point"] = (found._shift / found._scale).reshape(len(weight), -1)
            answer.native_bytes += 2 * found._shift.numel()
    return answer


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers of 4 or 2 bits from bytes, as the library's operator quanto::unpack describes it."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


if __name__ == "__main__":
    main(work)
