"""A peer's quantised weights as integer symbols and side information, for our coders; and back.

The weight of a symbol is ``(symbol - zero_point) * scale``, with a scale, and where the peer has one a zero point, for
every block of a matrix: the size of the scales divides that of the matrix. Zero points that are integers are taken off
the symbols and need no room. In a file the symbols are a coded tensor of step 1; scales and zero points are raw tensors
``NAME::scale`` and ``NAME::zero_point``, of float16 as in the peers' own formats. :func:`decoded` puts all together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rdo.quantizers import QuantizedTensor
from rdo_harness.peers.environments import PeerError

SCALE, ZERO_POINT = "::scale", "::zero_point"
_TOLERANCE = 2.0**-20
"""Of a recovered weight, relative to the largest of its block: what float32 arithmetic in another order may do."""
_HALF = 2.0**-11
"""Largest error of rounding to float16, relative to the value."""


@dataclass(frozen=True)
class Expression:
    """One matrix in symbols.

    Attributes:
        symbols: int32 [rows, columns].
        scale: [blocks down, blocks across], float16, or float32 where float16 has not the range.
        zero_point: likewise, or None.
    """

    symbols: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    def weight(self) -> Tensor:
        """What a reader gets, float32 [rows, columns]."""
        return _dequantized(self.symbols, self.scale, self.zero_point)

    def transposed(self) -> Expression:
        """The same of the transposed matrix."""
        zero_point = None if self.zero_point is None else self.zero_point.t()
        return Expression(self.symbols.t(), self.scale.t(), zero_point)

    def levels(self) -> Tensor:
        """How many different weights each block has, int64 [blocks]."""
        ordered = _blocks(self.symbols, self.scale).permute(0, 2, 1, 3).flatten(2).flatten(0, 1).sort(1).values
        return 1 + (ordered.diff(dim=1) != 0).sum(1)

    def entries(self, name: str) -> dict[str, Tensor]:
        """What a compressed checkpoint holds: the symbols as float32 numbers, to code with step 1, and the rest raw."""
        entries = {name: self.symbols.float(), name + SCALE: self.scale}
        return entries | ({} if self.zero_point is None else {name + ZERO_POINT: self.zero_point})


def express(name: str, weight: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Expression:
    """Recover the symbols of a matrix that a peer quantised.

    Args:
        name: for messages.
        weight: [rows, columns] float32, as the peer dequantised it.
        scale, zero_point: float32 [blocks down, blocks across].

    Raises:
        PeerError: some weight is not ``(integer - zero_point) * scale``.
    """
    if scale.ndim != 2 or not scale.numel() or any(n % m for n, m in zip(weight.shape, scale.shape, strict=True)):
        raise PeerError(f"{name}: scales of size {list(scale.shape)} do not divide a matrix of {list(weight.shape)}")
    blocks, scales = _blocks(weight, scale), scale[:, None, :, None]
    zeros = torch.zeros_like(scales) if zero_point is None else zero_point[:, None, :, None].float()
    symbols = (blocks / scales + zeros).round()
    allowed = _TOLERANCE * scales.abs() * (symbols.abs().amax((1, 3), keepdim=True) + zeros.abs())
    error = ((symbols - zeros) * scales - blocks).abs()
    if not bool((error <= allowed).all()):
        raise PeerError(
            f"{name}: {int((~(error <= allowed)).sum())} of {weight.numel()} weights are not an integer times "
            f"the scale that the peer states; the largest error is {float((error / scales.abs()).max()):.3g} steps"
        )
    if bool((zeros == zeros.round()).all()):
        return Expression((symbols - zeros).int().view_as(weight), _narrowed(scale))
    assert zero_point is not None
    return Expression(symbols.int().view_as(weight), _narrowed(scale), _narrowed(zero_point.float(), unit=1.0))


def decoded(quantized: Mapping[str, QuantizedTensor], raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint, by name: expressed matrices put together, the others dequantised or as they are."""
    weights = {name: tensor for name, tensor in raw.items() if not name.endswith((SCALE, ZERO_POINT))}
    first = {id(tensor): name for name, tensor in reversed(list(quantized.items()))}  # tied ones are one object
    for name, tensor in quantized.items():
        owner = first[id(tensor)]
        if owner + SCALE in raw:
            weights[name] = _dequantized(tensor.symbols, raw[owner + SCALE], raw.get(owner + ZERO_POINT))
        else:
            weights[name] = tensor.dequantize()
    return weights


def side_bytes(raw: Mapping[str, Tensor]) -> int:
    """Bytes of the scales and zero points among the raw tensors of a checkpoint."""
    return sum(t.numel() * t.element_size() for name, t in raw.items() if name.endswith((SCALE, ZERO_POINT)))


def _dequantized(symbols: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    blocks = _blocks(symbols.float(), scale)
    if zero_point is not None:
        blocks = blocks - zero_point.float()[:, None, :, None]
    return (blocks * scale.float()[:, None, :, None]).reshape(symbols.shape)


def _blocks(matrix: Tensor, scale: Tensor) -> Tensor:
    """[blocks down, rows of a block, blocks across, columns of a block]."""
    (rows, columns), (down, across) = matrix.shape, scale.shape
    return matrix.reshape(down, rows // down, across, columns // across)


def _narrowed(values: Tensor, unit: float = 0.0) -> Tensor:
    """In float16 if that rounds every value by no more than 2^-11 of itself, or of a unit, else in float32."""
    half = values.half()
    fits = (half.float() - values).abs() <= _HALF * values.abs().clamp(min=unit)
    return half if bool(fits.all()) else values.float()
