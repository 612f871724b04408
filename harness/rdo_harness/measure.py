"""What each coder would need for the symbols of a decoded checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import Histogram
from rdo.coders.exp_golomb import ExpGolomb
from rdo.coders.fixed_length import FixedLength
from rdo.coders.huffman import Huffman

if TYPE_CHECKING:
    from rdo.checkpoint import CheckpointInfo

_EXP_GOLOMB_ORDERS = range(11)
CODED_SIZES = (
    "entropy_bits_per_parameter",
    "fixed_length_bits_per_parameter",
    "exp_golomb_k0_bits_per_parameter",
    "exp_golomb_bits_per_parameter",
    "exp_golomb_best_k",
    "huffman_bits_per_parameter",
    "rans_bits_per_parameter",
    "coded_bits_per_parameter",
    "sparsity",
)
"""The columns that :func:`coded_sizes` gives."""


def coded_sizes(symbols: Sequence[NDArray[np.int32]], info: CheckpointInfo, side_bytes: int = 0) -> dict[str, Any]:
    """Bits per coded parameter under every coder, tables and scales included, and the entropy and sparsity.

    ``side_bytes`` are those of scales and zero points that the file holds as tensors of their own.

    Fixed length and Huffman are counted exactly from histograms and Exp-Golomb within 0.1 % (a test compares them with
    what encoding gives). What is on the disk is as coded, and rANS's size too if that coded every tensor; else it is
    None. Every coder works tensor by tensor. The order k of Exp-Golomb is one for the whole model; the best is reported
    beside k = 0.
    """
    histograms = [Histogram.of(values.reshape(-1)) for values in symbols]
    count = sum(histogram.count for histogram in histograms)
    zeros = sum(int(histogram.counts[histogram.values == 0].sum()) for histogram in histograms)

    def bits_per_parameter(total_bytes: int) -> float:
        return 8.0 * (total_bytes + info.scale_bytes + side_bytes) / max(count, 1)

    golomb = {k: bits_per_parameter(size) for k, size in exp_golomb_bytes(histograms).items()}
    best_k = min(golomb, key=lambda k: golomb[k])
    names = {tensor.coder["name"] for tensor in info.tensors if tensor.coder is not None}
    coded = bits_per_parameter(info.payload_bytes + info.table_bytes + info.index_bytes)
    return {
        "entropy_bits_per_parameter": sum(histogram.entropy_bits() for histogram in histograms) / max(count, 1),
        "fixed_length_bits_per_parameter": bits_per_parameter(sum(FixedLength().size_bytes(h) for h in histograms)),
        "exp_golomb_k0_bits_per_parameter": golomb[0],
        "exp_golomb_bits_per_parameter": golomb[best_k],
        "exp_golomb_best_k": best_k,
        "huffman_bits_per_parameter": bits_per_parameter(sum(Huffman().size_bytes(h) for h in histograms)),
        "rans_bits_per_parameter": coded if all(name == "rans" for name in names) else None,
        "coded_bits_per_parameter": coded,
        "sparsity": zeros / max(count, 1),
    }


def exp_golomb_bytes(histograms: Sequence[Histogram]) -> dict[int, int]:
    """Bytes of all tensors together under Exp-Golomb of each order k, tables included."""
    return {k: sum(ExpGolomb(k=k, mapping="rank").size_bytes(h) for h in histograms) for k in _EXP_GOLOMB_ORDERS}
