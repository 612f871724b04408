"""A few numbers that keep the length of a large tensor, and so its angle to others that are sketched alike."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROWS = 256
_PIECES = 16
"""Of 256 x 256 elements, that are sketched at once."""


class CountSketch:
    """Random sums of a tensor's elements: the count sketch (Charikar, Chen and Farach-Colton, ICALP 2002).

    Its squared length is on the mean that of the elements, and right within 9 % (one standard error). The sign of an
    element is that of its place in a piece, times one for the piece and the sum: any two are independent, and few are
    drawn.
    """

    length: ClassVar[int] = 256

    def __init__(self, device: torch.device) -> None:
        self._signs = _random_signs((_ROWS, self.length), 0, device)

    def __call__(self, part: Tensor, seed: int) -> Tensor:
        """Sums of every 256th element of a tensor of any size, float32 [256]; for equal seeds with the same signs."""
        piece = self._signs.numel()
        pieces = -(-part.numel() // piece)
        turns = _random_signs((pieces, self.length), seed, part.device)
        total, elements = self._signs.new_zeros(self.length), part.reshape(-1)
        for begin in range(0, pieces, _PIECES):
            some = elements[begin * piece : (begin + _PIECES) * piece].to(torch.float32)
            some = pad(some, (0, -some.numel() % piece)).view(-1, *self._signs.shape)
            total += ((some * self._signs).sum(1) * turns[begin : begin + _PIECES]).sum(0)
        return total


def _random_signs(size: tuple[int, int], seed: int, device: torch.device) -> Tensor:
    """1 and -1, float32, always the same for a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return 2.0 * torch.randint(2, size, generator=generator, device=device).to(torch.float32) - 1.0
