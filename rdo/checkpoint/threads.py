"""The tensors of a model on the cores of a machine: small ones side by side, large ones share out their own work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

B = TypeVar("B")

Progress = Callable[[int], None]
"""Is told how many weights have been done since it was last told; from any thread."""

_LARGE = 1 << 20


def for_each(function: Callable[[str], B], sizes: Mapping[str, int], progress: Progress | None = None) -> dict[str, B]:
    """Call a function with every name; results in the order of ``sizes``, which holds the weights of each tensor.

    Large tensors are taken one by one: that many more need not be in memory at once.
    """
    from rdo_kernels.cpu import threads

    def work(name: str) -> B:
        result = function(name)
        if progress is not None:
            progress(sizes[name])
        return result

    small = [name for name, size in sizes.items() if size < _LARGE]
    results = {name: work(name) for name in sizes if sizes[name] >= _LARGE}
    results.update(zip(small, threads.share(work, small), strict=True))
    return {name: results[name] for name in sizes}
