"""A worker like those of the peers: symmetric rounding in groups, or magnitude pruning, or misbehaviour."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "harness/rdo_harness/peers/workers"))
from peer_job import Answer, Job, main


def work(job: Job) -> Answer:
    """What the option ``act`` says."""
    act = (job.folder.parents[2] / "act").read_text()
    (job.folder.parents[2] / "calls").open("a").write("x")
    if act == "fail":
        raise RuntimeError("the stand-in fails")
    if act == "sleep":
        time.sleep(60)
    answer = Answer(native_bytes=1000, packages=("safetensors",))
    batches = job.calibration()
    assert all(batch.keys() <= {"input_ids", "attention_mask"} for batch in batches), "labels were handed over"
    answer.facts = {"batches": len(batches)}
    if act in ("rescale", "rescale what is not there"):
        norm = "transformer.h.0.ln_1.weight" if act == "rescale" else "no.such.weight"
        answer.tensors[norm] = torch.full((64,), 0.25)
    for name, weight in job.weights().items():
        size = job.options.get("group_size") or weight.shape[1]
        groups = weight.reshape(weight.shape[0], -1, size)
        largest = 2 ** (job.options.get("bits", 4) - (act != "too many levels")) - 1
        scale = (groups.abs().amax(2) / largest).half().float()
        rounded = (groups / scale[..., None]).round().clamp(-largest, largest) * scale[..., None]
        answer.tensors[name] = weight if act == "nothing" else rounded.view_as(weight)
        answer.tensors[f"{name}.scale"] = scale
        if "sparsity" in job.options:
            threshold = weight.abs().flatten().kthvalue(int(job.options["sparsity"] * weight.numel())).values
            kept = answer.tensors[name] if "bits" in job.options else weight
            answer.tensors[name] = kept * (weight.abs() > threshold * (act == "work" or 0.5))
    return answer


if __name__ == "__main__":
    main(work)
