"""NNCodec, the reference software of MPEG's Neural Network Coding. Options: ``qp`` and ``dependent`` quantisation."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import torch
from peer_job import Answer, Job, main

_DENSITY = 2
"""Steps per octave as powers of two, the library's default ``qp_density``."""


def work(job: Job) -> Answer:
    """Encode every matrix into a stream of its own, and decode it."""
    _import_torchvision()
    from nncodec import tensor as codec

    qp = job.options["qp"]
    options = {"qp": qp, "use_dq": job.options["dependent"], "results": str(job.folder)}
    # ISO/IEC 15938-17: the step of a quantisation parameter, here a mantissa of 4 to 7 times a power of two
    step = ((1 << _DENSITY) + (qp & ((1 << _DENSITY) - 1))) * 2.0 ** ((qp >> _DENSITY) - _DENSITY)
    answer = Answer(packages=("nncodec", "numpy"))
    for name, weight in job.weights().items():
        stream = codec.encode(weight.numpy(), options)
        answer.tensors[name] = torch.from_numpy(codec.decode(stream)).float().reshape(weight.shape)
        answer.tensors[f"{name}.scale"] = torch.full((1, 1), step)
        answer.native_bytes += len(stream)
    return answer


def _import_torchvision() -> None:
    """NNCodec imports torchvision for its examples; one built for another PyTorch (CPU or CUDA) cannot be imported.

    Nothing of it is used here, so that a stand-in will do.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.datasets", "torchvision.models", "torchvision.transforms"):
            sys.modules[name] = MagicMock()


if __name__ == "__main__":
    main(work)
