"""RateAdamW, from the sums of one step to the law of the next, against the same steps by eager operators on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rdo.constraint import RateConstraint
from rdo.entropy.lp import Lp
from rdo.errors import NonFiniteWeightsError
from rdo.optim import RateAdamW
from rdo_harness.kernel_checks.samples import check, weights

STEPS = 20
SIZES = (65_543, 97, 1, 1009, 5)
TERMS: list[dict[str, Any]] = [
    {"apply": "gradient", "lam": 0.02},
    {"apply": "decoupled", "lam": 0.3, "units": "paper"},
    {"apply": "decoupled", "lam": 0.005, "scale_by_lr": True, "pooling": "tensor"},
    {"apply": "decoupled", "lam": 0.005, "fit_to": "after"},
    {"apply": "proximal", "lam": 20.0, "entropy_model": Lp(p=0.5)},
    {"apply": "proximal", "lam": 0.5, "precondition": True, "pooling": "tensor"},
]


@check
def rate_adamw_trains_as_on_a_cpu(device: torch.device, backend: str | None) -> None:
    """Every application, from the sums that each step gathers for the next; twenty steps of the first."""
    for term in TERMS:
        ours, theirs = _Training(device, backend, term), _Training(torch.device("cpu"), "blocks", term)
        for step in range(STEPS if term is TERMS[0] else 4):
            ours.step(step)
            theirs.step(step)
        _same(ours, theirs, f"{term}")
        found, expected = ours.constraint.report(), theirs.constraint.report()
        for name, value in expected.theta.items():
            assert math.isclose(found.theta[name], value, rel_tol=1e-5), (term, name, found.theta, expected.theta)
        assert math.isclose(
            found.surrogate_bits_per_parameter, expected.surrogate_bits_per_parameter, rel_tol=1e-5, abs_tol=1e-9
        )


@check
def master_weights_follow_float32(device: torch.device, backend: str | None) -> None:
    """A bfloat16 model with master weights is the rounding of the same training in float32."""
    term = {"apply": "proximal", "lam": 0.5, "precondition": True}
    half = _Training(device, backend, term, torch.bfloat16, master_weights=True)
    full = _Training(torch.device("cpu"), "blocks", term)
    with torch.no_grad():
        for mine, other in zip(full.parameters, half.parameters, strict=True):
            mine.copy_(other.to("cpu", torch.float32))
    for step in range(5):
        half.step(step)
        for mine, other in zip(full.parameters, half.parameters, strict=True):
            assert other.grad is not None
            mine.grad = other.grad.to("cpu", torch.float32)
        full.optimizer.step()
    for mine, other in zip(full.parameters, half.parameters, strict=True):
        master = half.optimizer.state[other]["master"].cpu()
        torch.testing.assert_close(master, mine.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.detach().cpu(), master.to(torch.bfloat16), rtol=2.0**-7, atol=0)


@check
def scaled_and_skipped_steps(device: torch.device, backend: str | None) -> None:
    """Gradients times a loss scale give the same steps; a step with infinite gradients changes nothing."""
    term = {"apply": "gradient", "lam": 0.5}
    ours, theirs = _Training(device, backend, term), _Training(torch.device("cpu"), "blocks", term)
    scale, none, found = (torch.tensor(value, device=device) for value in (1024.0, 0.0, 1.0))
    ours.optimizer.grad_scale = scale  # type: ignore[attr-defined]
    for step in range(6):
        ours.optimizer.found_inf = found if step % 3 == 1 else none  # type: ignore[attr-defined]
        before = [parameter.detach().clone() for parameter in ours.parameters]
        ours.step(step, scale=1024.0)
        if step % 3 == 1:
            assert all(map(torch.equal, before, ours.parameters)), "a skipped step changed weights"
        else:
            theirs.step(step)
    _same(ours, theirs, "scaled")
    state = ours.optimizer.state[ours.parameters[0]]
    assert float(state["step"]) == 4.0


@check
def learning_rate_and_lambda_as_tensors(device: torch.device, backend: str | None) -> None:
    """Changed in place between steps, as a CUDA graph's user changes them."""
    lr, lam = torch.tensor(1e-2, device=device), torch.tensor(0.1, device=device)
    ours = _Training(device, backend, {"apply": "proximal", "lam": lam}, lr=lr)
    theirs = _Training(torch.device("cpu"), "blocks", {"apply": "proximal", "lam": lambda step: 0.1 * (step + 1)})
    for step in range(4):
        lam.fill_(0.1 * (step + 1))
        lr.fill_(1e-2 / (step + 1))
        for group in theirs.optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        ours.step(step)
        theirs.step(step)
    _same(ours, theirs, "tensors")


@check
def weights_that_are_not_finite_are_reported(device: torch.device, backend: str | None) -> None:
    """By this step or one of the next, and no other weight is harmed."""
    training = _Training(device, backend, {"apply": "proximal", "lam": 0.5, "pooling": "global"})
    training.step(0)
    with torch.no_grad():
        training.parameters[3][7] = math.inf
    message = ""
    for step in range(1, 4):
        try:
            training.step(step)
            if device.type == "cuda":
                torch.cuda.synchronize()
        except NonFiniteWeightsError as error:
            message = str(error)
            break
    assert "weight3" in message, message or "nothing was raised"
    finite = [int(parameter.isfinite().logical_not().sum()) for parameter in training.parameters]
    assert finite == [0, 0, 0, 1, 0], finite


@check
def steps_in_a_cuda_graph(device: torch.device, backend: str | None) -> None:
    """Captured after a few steps and replayed with other learning rates, lambdas and gradients; elsewhere just run."""
    lr, lam = torch.tensor(1e-2, device=device), torch.tensor(0.1, device=device)
    ours = _Training(device, backend, {"apply": "proximal", "lam": lam}, lr=lr)
    theirs = _Training(torch.device("cpu"), "blocks", {"apply": "proximal", "lam": lambda step: 0.1 * (step + 1)})
    graph = None
    for step in range(6):
        lam.fill_(0.1 * (step + 1))
        lr.fill_(1e-2 / (step + 1))
        for group in theirs.optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        theirs.step(step)
        if device.type != "cuda" or step < 2:
            ours.step(step)
            continue
        ours.fill_gradients(step)
        if graph is None:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                ours.optimizer.step()
        graph.replay()
    _same(ours, theirs, "graph")


class _Training:
    """Steps of RateAdamW whose gradients are elementwise functions of the weights, the same on every device."""

    def __init__(
        self,
        device: torch.device,
        backend: str | None,
        term: dict[str, Any],
        dtype: torch.dtype = torch.float32,
        lr: float | Tensor = 1e-2,
        **options: Any,
    ) -> None:
        term = dict(term)
        values = [weights(size, device, dtype, seed=number) for number, size in enumerate(SIZES)]
        self.parameters = [torch.nn.Parameter(value) for value in values]
        named = [(f"weight{number}", self.parameters[number]) for number in (0, 1, 3)]
        self.constraint = RateConstraint(named, term.pop("entropy_model", "generalized_gaussian"), **term)
        groups = [
            {"params": self.parameters[:2], "weight_decay": 0.1},
            {"params": self.parameters[2:], "betas": (0.8, 0.95), "maximize": True},
        ]
        self.optimizer = RateAdamW(groups, lr=lr, eps=1e-3, rate=self.constraint, backend=backend, **options)

    def fill_gradients(self, number: int, scale: float = 1.0) -> None:
        for parameter in self.parameters:
            noise = weights(parameter.numel(), parameter.device, torch.float32, seed=100 + number)
            gradient = (scale * (0.3 * parameter.detach().to(torch.float32) + noise)).to(parameter.dtype)
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.copy_(gradient)

    def step(self, number: int, scale: float = 1.0) -> None:
        self.fill_gradients(number, scale)
        self.optimizer.step()


def _same(ours: _Training, theirs: _Training, what: str) -> None:
    for found, expected in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(
            found.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-5, msg=lambda text: f"{what}: {text}"
        )
