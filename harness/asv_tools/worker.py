"""Measures figures whose identifiers come line by line, and answers each with a line of JSON: value, error.

It is run as a file, so that the benchmarks are today's whatever version of the package is on the path.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from pathlib import Path

from asv_runner.discovery import get_benchmark_from_name

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "asv_bench")
CACHES: dict[str, object] = {}


def main(root: Path) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what benchmarks print is no reply
    import rdo
    import rdo_kernels

    for package in (rdo, rdo_kernels):
        if not Path(package.__file__).resolve().is_relative_to(root):
            raise SystemExit(f"{package.__name__} comes from {package.__file__}, not from {root}")
    for line in sys.stdin:
        replies.write(json.dumps(_measured(line.strip())) + "\n")
        replies.flush()


def _measured(identifier: str) -> tuple[float | None, str]:
    try:
        benchmark = get_benchmark_from_name(BENCHMARKS, identifier)
        key = benchmark.setup_cache_key
        if key is not None and key not in CACHES:
            CACHES[key] = benchmark.do_setup_cache()
        benchmark.set_cache(CACHES.get(key))
        if benchmark.do_setup():  # skipped
            return None, ""
        value = float(benchmark.do_run())
        benchmark.do_teardown()
    except Exception as error:  # the other figures are wanted all the same
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"
    return (value, "") if math.isfinite(value) else (None, f"measured {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
