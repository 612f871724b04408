"""Runs in the environment of NNCodec: one JSON request a line on standard input, one answer a line on standard output.

A request names a folder with 0.npy, 1.npy, ...: int32 matrices. Each is encoded and decoded; N-decoded.npy is what came
back. The answer has the bytes of all streams, and wall and processor seconds of encoding and of decoding.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library prints
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:  # one request must not end the process; the asker reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import importlib.metadata

    import numpy as np
    from nncodec import tensor as codec

    if request.get("version"):
        return {"version": f"nncodec {importlib.metadata.version('nncodec')}, numpy {np.__version__}"}
    folder = request["folder"]
    options = {"use_dq": False, "param_opt": request["parameter_search"], "results": folder}
    nbytes, encode, decode = 0, [0.0, 0.0], [0.0, 0.0]
    for number in range(request["tensors"]):
        symbols = np.load(os.path.join(folder, f"{number}.npy"))
        start = time.perf_counter(), time.process_time()
        stream = codec.encode(symbols, options)
        middle = time.perf_counter(), time.process_time()
        decoded = codec.decode(stream)
        end = time.perf_counter(), time.process_time()
        nbytes += len(stream)
        encode = [total + b - a for total, a, b in zip(encode, start, middle, strict=True)]
        decode = [total + b - a for total, a, b in zip(decode, middle, end, strict=True)]
        np.save(os.path.join(folder, f"{number}-decoded.npy"), decoded)
    return {"nbytes": nbytes, "encode": encode, "decode": decode}


if __name__ == "__main__":
    main()
