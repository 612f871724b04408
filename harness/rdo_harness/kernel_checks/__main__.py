"""The command ``python -m rdo_harness.kernel_checks``."""

from __future__ import annotations

import argparse
import json
import sys

import torch

import rdo_kernels
from rdo_harness.kernel_checks import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Check every operation over weights against float64.")
    parser.add_argument("--device", default="cpu", help="where the tensors are (default: %(default)s)")
    parser.add_argument("--backend", choices=sorted(rdo_kernels.BACKENDS), help="default: what suits the device")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    results = run(torch.device(arguments.device), arguments.backend)
    if arguments.json:
        print(json.dumps(results))
    else:
        for name, message in results.items():
            print(f"{'failed' if message else 'passed'}  {name.replace('_', ' ')}{': ' + message if message else ''}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
