"""Bitstreams with changed parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rdo.coders import Bitstream


def altered(
    stream: Bitstream, *, table: NDArray[np.uint8] | None = None, payload: NDArray[np.uint8] | None = None
) -> Bitstream:
    """With another table or payload. Of a shorter or longer payload the last segments are so, too."""
    table = stream.table if table is None else table
    payload = stream.payload if payload is None else payload
    ends = np.minimum(np.cumsum(stream.lengths), payload.size)
    if len(ends):
        ends[-1] = payload.size
    return replace(stream, table=table, payload=payload, lengths=np.diff(ends, prepend=0))
