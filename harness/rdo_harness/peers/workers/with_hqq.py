"""HQQ (half-quadratic quantisation, hqq). Options: ``bits`` (8, 4, 3, 2, 1) and ``group_size``; needs no data."""

from __future__ import annotations

import torch
from peer_job import Answer, Job, main


def work(job: Job) -> Answer:
    """Quantise every matrix by itself, along its rows."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    answer = Answer(packages=("hqq",))
    for name, weight in job.weights().items():
        size = job.options["group_size"] or weight.shape[1]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        config = BaseQuantizeConfig(nbits=job.options["bits"], group_size=size, axis=1)
        layer = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
        answer.tensors[name] = Quantizer.dequantize(layer.W_q.data, layer.meta)
        answer.tensors[f"{name}.scale"] = layer.meta["scale"].reshape(len(weight), -1)
        answer.tensors[f"{name}.zero_point"] = layer.meta["zero"].reshape(len(weight), -1)
        groups = layer.meta["scale"].numel()
        answer.native_bytes += layer.W_q.numel() * layer.W_q.element_size() + 2 * 2 * groups  # float16, its default
    return answer


if __name__ == "__main__":
    main(work)
