"""Steps of AdamW with the rate term that never wait for the host, and that a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from rdo_kernels.alarm import Alarm, capturing
from rdo_kernels.chunks import address_table
from rdo_kernels.fused import FOLLOWS, Control, NotFiniteError, Tensors, Term, Watch, pooled
from rdo_kernels.gpu.adamw import FACTORS, launch
from rdo_kernels.gpu.launch import Addresses, device_function, geometry, interpreting
from rdo_kernels.gpu.prepare import PROGRAMS, prepare
from rdo_kernels.gpu.rate import add_up, moments_from, sums_of
from rdo_kernels.types import MOMENTS


class DeviceAdamW:
    """Two launches a step: one prepares all tensors, one updates them (one for each combination of data types)."""

    def __init__(self, tensors: Tensors, gradients: Sequence[Tensor], groups: Sequence[int], term: Term) -> None:
        device, count = tensors.weights[0].device, len(tensors.weights)
        self._tensors, self._term = tensors, term
        self._cut = geometry(*self._side_by_side(gradients))
        self._addresses = _Places(count, 4 if tensors.copies is None else 5, device)
        self._watch = Watch(lambda: tensors.copies if tensors.copies is not None else tensors.weights)
        self._alarm = Alarm(triton.cdiv(count, self._block), device)

        members = torch.tensor([list(groups), [int(own) for own in term.covered]], dtype=torch.int64)
        self._members = members.T.contiguous().to(device)
        self._covered = members[1].nonzero().flatten().to(device)
        covered = sum(w.numel() for w, own in zip(tensors.weights, term.covered, strict=True) if own)
        self._total = torch.tensor([float(max(covered, 1))], dtype=torch.float64, device=device)
        self._strength = torch.zeros(1, dtype=torch.float64, device=device)
        self._controls = torch.zeros(max(groups) + 1, 7, dtype=torch.float64, device=device)
        self._known: dict[tuple[int, int] | None, float] = {}  # numbers that are on the device already

        self._fit = None if term.paper else term.family.device_fit
        self._options = term.family.device_fit_options().to(device)
        law = term.family.device_theta(term.family.fit(torch.ones(len(MOMENTS), dtype=torch.float64)))
        self._laws = torch.ones(count, law.shape[-1] + 3, dtype=torch.float32, device=device)
        self._factors = torch.zeros(count, FACTORS, dtype=torch.float32, device=device)
        self._fitted = torch.zeros(count, len(MOMENTS), dtype=torch.float64, device=device)
        self._sums = torch.zeros(self._cut.rows, 4, dtype=torch.float64, device=device)
        self._partials = torch.zeros(self._cut.rows, dtype=torch.float64, device=device)
        self._one, self._zero = torch.ones(1, device=device), torch.zeros(1, device=device)

    def step(
        self,
        gradients: Sequence[Tensor],
        controls: Sequence[Control],
        lam: float | Tensor,
        loss_scale: Tensor | None = None,
        overflow: Tensor | None = None,
    ) -> None:
        held = capturing(self._laws.device)
        changed = held or self._watch.changed()
        if not held:
            self._raise_alarm()
            if changed:
                self._look_again()
        self._set(controls, lam)
        self._prepare(loss_scale, overflow)
        places = self._addresses.of(self._side_by_side(gradients), gradients, changed, held)
        laws, term = self._laws, self._term
        launch(self._cut, places, self._factors, laws, self._partials, self._sums, term.family, term.apply)
        torch.autograd.graph.increment_version(self._tensors.written())
        if not held:
            self._alarm.send()
            self._watch.mark()

    def moments(self) -> Tensor:
        return moments_from(self._sums, self._cut)[self._covered]

    def bits(self) -> Tensor:
        return add_up(self._partials, self._cut, 1)

    def theta(self) -> Tensor:
        moments = self._fitted[self._covered]
        return self._term.family.fit(moments[0] if self._term.pooled else moments)

    @property
    def _block(self) -> int:
        """Tensors that a program prepares; many in the interpreter, where programs run one by one."""
        programs = 2 if interpreting() else PROGRAMS
        return int(triton.next_power_of_2(triton.cdiv(len(self._tensors.weights), programs)))

    def _side_by_side(self, gradients: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        tensors = self._tensors
        groups = [tensors.weights, gradients, tensors.firsts, tensors.seconds]
        return groups if tensors.copies is None else [*groups, tensors.copies]

    def _look_again(self) -> None:
        """Take the sums of weights that something else wrote; it wrote the copies if the weights are masters."""
        weights, copies = self._tensors.weights, self._tensors.copies
        if copies is not None and self._watch.marked:
            torch._foreach_copy_(list(weights), list(copies))
        self._sums.copy_(sums_of(weights, self._cut))

    def _set(self, controls: Sequence[Control], lam: float | Tensor) -> None:
        """Bring changed numbers to the device, in launches that a graph can hold."""
        for row, control in enumerate(controls):
            for column, value in enumerate(control):
                if isinstance(value, Tensor):
                    self._controls[row, column].copy_(value)
                elif self._known.get((row, column)) != value:
                    self._controls[row, column].fill_(value)
                    self._known[row, column] = value
        if isinstance(lam, Tensor):
            torch.div(lam.to(torch.float64).reshape(1), self._total, out=self._strength)
        elif self._known.get(None) != lam:
            torch.div(torch.full_like(self._total, lam), self._total, out=self._strength)
            self._known[None] = lam

    def _prepare(self, loss_scale: Tensor | None, overflow: Tensor | None) -> None:
        term, strength = self._term, self._strength
        if self._fit is None:
            strength = self._fit_here()
        prepare[(self._alarm.flags.numel(),)](
            self._sums,
            self._cut.chunks,
            self._cut.bounds,
            self._cut.counts,
            self._members,
            self._controls,
            strength,
            self._one if loss_scale is None else loss_scale.to(torch.float32),
            self._zero if overflow is None else overflow.to(torch.float32),
            self._options,
            self._tensors.steps,
            self._laws,
            self._factors,
            self._fitted,
            self._alarm.flags,
            self._total,
            len(self._tensors.weights),
            self._cut.rows,
            None if self._fit is None else device_function(self._fit),
            self._laws.shape[1] - 3,
            term.pooled,
            FOLLOWS.index(term.follows),
            strength.numel() > 1,
            self._block,
            num_warps=8,
        )

    def _fit_here(self) -> Tensor:
        """Fit by the family's own operators, on the device; the factors of the slopes but for learning rates."""
        term = self._term
        moments = moments_from(self._sums, self._cut)
        theta = term.family.fit(pooled(moments[self._covered]) if term.pooled else moments)
        laws = term.family.device_theta(theta).expand(len(moments), -1)
        covered = self._members[:, 1:] != 0
        self._laws[:, : laws.shape[1]] = torch.where(covered & laws.isfinite(), laws, 1.0)
        factor = torch.ones_like(self._total)
        if term.paper:
            factor = term.family.paper_factor(theta).nan_to_num(0.0)
        return (self._strength * factor).expand(len(moments)).contiguous()

    def _raise_alarm(self) -> None:
        if self._alarm.rung():
            finite = moments_from(self._sums, self._cut)[self._covered].isfinite().all(dim=1)
            if not bool(finite.all()):
                raise NotFiniteError(self._covered[~finite].tolist())


class _Places:
    """The table of addresses, of which in most steps only those of gradients can have changed."""

    def __init__(self, tensors: int, groups: int, device: torch.device) -> None:
        self._now: list[int] = []
        self._table = torch.empty(tensors, groups, dtype=torch.int64, device=device)
        self._aligned = False
        self._pinned: Tensor | None = None
        self._held: list[Tensor] = []

    def of(
        self, groups: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor], changed: bool, held: bool
    ) -> Addresses:
        cuda = self._table.is_cuda
        if cuda and not held and self._pinned is None:
            self._pinned = torch.empty_like(self._table, device="cpu", pin_memory=True)
        now = [gradient.data_ptr() for gradient in gradients]
        if changed or now != self._now:
            self._now = now
            table = address_table(groups)
            self._aligned = not bool((table % 16).any())
            self._upload(torch.from_numpy(table), held)
        return Addresses(self._table, self._aligned)

    def _upload(self, table: Tensor, held: bool) -> None:
        if not held:
            self._table.copy_(table)
            return
        # A graph copies again at every replay, from pinned memory that must stay as it is for as long as the graph.
        if self._pinned is None:
            raise RuntimeError("run a step of the optimizer outside of the capture before each capture of one")
        self._pinned.copy_(table)
        self._table.copy_(self._pinned, non_blocking=True)
        self._held.append(self._pinned)
        self._pinned = None
