"""AdamW with the rate term over tensors that are stepped again and again: in one pass over memory, each step.

:func:`fused_adamw` gives the form that suits the tensors: on a GPU everything between two steps stays on the device;
elsewhere the law is fitted on the host. Both fit it to the sums that the step before gathered from the weights as it
wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rdo_kernels import operations
from rdo_kernels.types import FittedFamily

Control = tuple[float | Tensor, float, float, float, float, float, float | Tensor]
"""Of a parameter group: lr, beta1, beta2, eps, weight decay, -1 to maximise or else 1, and the largest lr so far.

Learning rates may be tensors on the weights' device, which are not waited for.
"""

FOLLOWS = ("nothing", "lr", "share of the largest lr")
"""What the factor of the slope is multiplied by."""


class NotFiniteError(ArithmeticError):
    """Covered weights are NaN or infinite; ``rows`` says which tensors."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"weights of tensors {list(rows)} are not finite")
        self.rows = rows


class Tensors(NamedTuple):
    """What a step updates, T of each.

    Attributes:
        weights: parameters, or their float32 master copies.
        firsts, seconds: Adam's running means of gradients and of their squares.
        copies: the model's own parameters where ``weights`` are master copies of them.
        steps: steps so far, float32 [T], on the weights' device; counted up.
    """

    weights: Sequence[Tensor]
    firsts: Sequence[Tensor]
    seconds: Sequence[Tensor]
    copies: Sequence[Tensor] | None
    steps: Tensor

    def written(self) -> list[Tensor]:
        """Every tensor that a step writes."""
        return [*self.weights, *self.firsts, *self.seconds, *(self.copies or [])]


class Term(NamedTuple):
    """The rate term of a step.

    Attributes:
        apply: one of :data:`rdo_kernels.APPLY`.
        follows: one of :data:`FOLLOWS`.
        pooled: one law for all covered tensors, or one for each.
        paper: lambda is in the units of the paper, and converted by each step's law.
        covered: for each tensor, whether the term covers it.
    """

    family: FittedFamily
    apply: str
    follows: str
    pooled: bool
    paper: bool
    covered: Sequence[bool]


class FusedAdamW(Protocol):
    """Steps of a fixed list of tensors."""

    def step(
        self,
        gradients: Sequence[Tensor],
        controls: Sequence[Control],
        lam: float | Tensor,
        loss_scale: Tensor | None = None,
        overflow: Tensor | None = None,
    ) -> None:
        """Do one step.

        Args:
            controls: one for each parameter group.
            lam: lambda; divided by the number of covered weights it is the factor of the slope. 0 is plain AdamW.
            loss_scale: what gradients are to be divided by; a scalar.
            overflow: not 0 if gradients are infinite and the step is to be skipped; a scalar.

        Raises:
            NotFiniteError: before anything is written, on a CPU. On a GPU such weights get no rate term, and the
                error comes with a later step, because none waits for the device.
        """
        ...

    def moments(self) -> Tensor:
        """Moments of the covered weights as the last step wrote them: float64 [covered, 5]."""
        ...

    def bits(self) -> Tensor:
        """Rate of each tensor in the last step, of the weights that the slope was taken at: float64 [T]."""
        ...

    def theta(self) -> Tensor:
        """What the last step's law was: float64 [K], or [T, K] if each tensor has its own."""
        ...


def fused_adamw(
    tensors: Tensors, gradients: Sequence[Tensor], groups: Sequence[int], term: Term, backend: str | None = None
) -> FusedAdamW:
    """The form that suits these tensors; ``groups`` is the parameter group of each. ``gradients`` are examples."""
    from rdo_kernels.gpu import launch

    if backend is None:
        rows = zip(tensors.weights, gradients, tensors.firsts, tensors.seconds, strict=True)
        fits = all(launch.takes(row, term.family) for row in rows)
        fits = fits and all(copy.is_contiguous() for copy in tensors.copies or [])
        backend = "triton" if fits and len({weight.device for weight in tensors.weights}) == 1 else None
    if backend == "triton":
        from rdo_kernels.gpu.fused import DeviceAdamW

        return DeviceAdamW(tensors, gradients, groups, term)
    return HostAdamW(tensors, groups, term, backend)


class Watch:
    """Notices changes of tensors, as autograd counts them (writes to ``.data`` escape it)."""

    def __init__(self, tensors: Callable[[], Sequence[Tensor]]) -> None:
        self._tensors = tensors
        self._seen: list[tuple[int, int]] | None = None

    def mark(self) -> None:
        """From now on."""
        self._seen = self._state()

    @property
    def marked(self) -> bool:
        """Whether a mark was ever set."""
        return self._seen is not None

    def changed(self) -> bool:
        """Whether a tensor changed since the last mark, or none was set."""
        return self._seen != self._state()

    def _state(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._tensors()]


class HostAdamW:
    """Fits on the host; for CPUs, and for tensors that no kernel of a GPU takes."""

    def __init__(self, tensors: Tensors, groups: Sequence[int], term: Term, backend: str | None) -> None:
        self._tensors, self._term, self._backend = tensors, term, backend
        self._groups = np.array(groups, np.int64)
        self._covered = np.array(term.covered, np.bool_)
        self._count = sum(w.numel() for w, own in zip(tensors.weights, term.covered, strict=True) if own)
        self._watch = Watch(lambda: tensors.copies if tensors.copies is not None else tensors.weights)
        self._moments = torch.empty(0)
        self._bits = torch.zeros(len(groups), dtype=torch.float64)
        self._theta = torch.empty(0)

    def step(
        self,
        gradients: Sequence[Tensor],
        controls: Sequence[Control],
        lam: float | Tensor,
        loss_scale: Tensor | None = None,
        overflow: Tensor | None = None,
    ) -> None:
        if overflow is not None and bool(overflow):
            return
        tensors, term = self._tensors, self._term
        if self._watch.changed():
            if tensors.copies is not None and self._watch.marked:
                torch._foreach_copy_(list(tensors.weights), list(tensors.copies))
            self._moments = operations.moments(tensors.weights, backend=self._backend)
        settings = np.array([[float(value) for value in control] for control in controls])[self._groups]
        rate, largest = settings[:, 0].copy(), settings[:, 6].copy()
        scales = np.where(self._covered, float(lam) / max(self._count, 1), 0.0)
        if float(lam) > 0.0:
            self._theta = self._fit()
            if term.paper:
                scales = scales * term.family.paper_factor(self._theta).numpy()
            scales *= {"nothing": 1.0, "lr": rate, "share of the largest lr": rate / largest}[term.follows]
        elif not self._theta.numel():
            self._theta = self._fit()
        tensors.steps.add_(1.0)
        settings[:, 6] = settings[:, 5] / (1.0 if loss_scale is None else float(loss_scale))
        settings[:, 5] = tensors.steps.cpu().numpy()
        self._bits, self._moments = operations.adamw_step(
            tensors.weights,
            gradients,
            tensors.firsts,
            tensors.seconds,
            settings,
            term.family,
            self._theta,
            scales.tolist(),
            term.apply,
            backend=self._backend,
        )
        if tensors.copies is not None:
            torch._foreach_copy_(list(tensors.copies), list(tensors.weights))
        self._watch.mark()

    def moments(self) -> Tensor:
        return self._moments[torch.from_numpy(self._covered)]

    def bits(self) -> Tensor:
        return self._bits

    def theta(self) -> Tensor:
        return self._theta[torch.from_numpy(self._covered)] if self._theta.ndim == 2 else self._theta

    def _fit(self) -> Tensor:
        moments = self._moments.cpu()
        covered = torch.from_numpy(self._covered)
        if not bool(moments.isfinite().all()):
            bad = covered & moments.isfinite().all(dim=1).logical_not()
            if bool(bad.any()):
                raise NotFiniteError(bad.nonzero().flatten().tolist())
        if self._term.pooled:
            return self._term.family.fit(pooled(moments[covered]))
        return self._term.family.fit(moments)


def pooled(moments: Tensor) -> Tensor:
    """The moments of all tensors together, float64 [5], from those of each, float64 [T, 5]."""
    return torch.cat([moments[:, :4].sum(0), moments[:, 4].amax(0, keepdim=True)])
