"""Checks of every operation over weights against float64, and of decoders to the bit, on any device and backend.

On a GPU they run before anything is timed; without one, in Triton's interpreter:
``TRITON_INTERPRET=1 python -m rdo_harness.kernel_checks --backend triton``.
"""

from __future__ import annotations

import torch

from rdo_harness.kernel_checks import adamw as adamw
from rdo_harness.kernel_checks import decode as decode
from rdo_harness.kernel_checks import optimizer as optimizer
from rdo_harness.kernel_checks import quantize as quantize
from rdo_harness.kernel_checks import rate as rate
from rdo_harness.kernel_checks.samples import CHECKS

__all__ = ["CHECKS", "run"]


def run(device: torch.device, backend: str | None) -> dict[str, str]:
    """The message of each check that failed, or ``""``."""
    results = {}
    for name, function in CHECKS.items():
        try:
            function(device, backend)
            results[name] = ""
        except Exception as error:  # every failure is a result, whatever it is
            results[name] = f"{type(error).__name__}: {error}"
    return results
