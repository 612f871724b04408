"""Rounding to nearest as in torchao's weight-only configuration. Options: ``bits`` (1 to 8) and ``group_size``."""

from __future__ import annotations

from typing import Any

import torch
from peer_job import Answer, Job, main


def work(job: Job) -> Answer:
    """Quantise every matrix by itself, symmetrically; a group size of 0 is a scale for each row."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    answer = Answer(packages=("torchao",))
    size = job.options["group_size"]
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{job.options['bits']}"), granularity=PerGroup(size) if size else PerAxis(0)
    )
    for name, weight in job.weights().items():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        quantize_(linear, config)
        found: Any = linear.weight  # a subclass of Tensor
        answer.tensors[name] = found.dequantize()
        answer.tensors[f"{name}.scale"] = found.scale.float().reshape(len(weight), -1)
        answer.tensors[f"{name}.zero_point"] = found.zero_point.float().reshape(len(weight), -1)
        answer.native_bytes += found.qdata.numel() + 2 * found.scale.numel()  # a byte each, whatever the bits
    return answer


if __name__ == "__main__":
    main(work)
