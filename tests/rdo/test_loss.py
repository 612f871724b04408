from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rdo
from rdo import loss
from rdo.entropy.generalized_gaussian import GeneralizedGaussian
from rdo.errors import ConfigError

LAW = GeneralizedGaussian(eps=0.01)
TERM = loss.RateTerm(LAW)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3))


def matrices(net: nn.Module) -> list[Tensor]:
    return [parameter for parameter in net.parameters() if parameter.ndim > 1]


def eager(parameters: list[Tensor], theta: Tensor) -> Tensor:
    count = sum(parameter.numel() for parameter in parameters)
    return sum(LAW.surrogate(parameter, theta).sum() for parameter in parameters) / count


def gradients(value: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, matrices(net)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_those_of_the_eager_form(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    theta = TERM.fit(matrices(net))
    ours, theirs = TERM(matrices(net), theta), eager(matrices(net), theta)
    assert ours.dtype == torch.float32
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for mine, expected in zip(gradients(3.0 * ours, net), gradients(3.0 * theirs, net), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)


def test_it_has_the_gradient_that_attach_adds() -> None:
    net, attached = network(), network()
    optimizer = torch.optim.SGD(attached.parameters(), lr=1.0)
    rdo.attach(optimizer, attached, lam=0.25, entropy_model=LAW, verbose=False)
    before = [parameter.detach().clone() for parameter in matrices(attached)]
    attached(torch.zeros(1, 16)).sum().mul(0.0).backward()
    optimizer.step()
    term = 0.25 * TERM(matrices(net), TERM.fit(matrices(net)))
    for start, end, gradient in zip(before, matrices(attached), gradients(term, net), strict=True):
        torch.testing.assert_close(start - end.detach(), gradient, rtol=1e-3, atol=1e-8)


def test_the_operators_are_sound() -> None:
    """Schema, fake tensors, autograd registration and dynamic sizes, by PyTorch's own checker."""
    weight = torch.randn(5, 7, requires_grad=True)
    theta = torch.tensor([0.8, 0.05], dtype=torch.float64)
    config = '{"name": "generalized_gaussian", "eps": 0.01}'
    torch.library.opcheck(loss._rate, (weight, theta, config))
    torch.library.opcheck(loss._rate_gradient, (weight.detach(), theta, torch.tensor(0.5), config))


def training_loss(net: nn.Module, inputs: Tensor, theta: Tensor) -> Tensor:
    return net(inputs).square().mean() + 0.1 * TERM(matrices(net), theta)


def test_under_compile_it_is_one_graph_with_the_same_gradient() -> None:
    net, inputs = network(), torch.randn(4, 16)
    theta = TERM.fit(matrices(net))
    expected = gradients(training_loss(net, inputs, theta), net)
    compiled: Any = torch.compile(training_loss, backend="aot_eager", fullgraph=True)
    for mine, wanted in zip(gradients(compiled(net, inputs, theta), net), expected, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_it_exports() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, inputs: Tensor, theta: Tensor) -> Tensor:
            return training_loss(self.net, inputs, theta)

    module, inputs = Module(), torch.randn(4, 16)
    theta = TERM.fit(matrices(module.net))
    program = torch.export.export(module, (inputs, theta))
    assert any("rdo.rate" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(inputs, theta), module(inputs, theta))


def test_under_activation_checkpointing() -> None:
    net, inputs = network(), torch.randn(4, 16)
    theta = TERM.fit(matrices(net))
    expected = gradients(training_loss(net, inputs, theta), net)
    value = checkpoint(training_loss, net, inputs, theta, use_reentrant=False)
    for mine, wanted in zip(gradients(value, net), expected, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_nothing_to_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weights"):
        TERM([torch.empty(0)], torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_route_in_place_gives_the_same_bits(dtype: torch.dtype) -> None:
    """Post-accumulate-grad hooks against the operator, over steps that move the weights and so the law."""
    inputs = torch.randn(8, 16, dtype=dtype)
    with_term, hooked = network().to(dtype), network().to(dtype)
    handle = rdo.attach(
        torch.optim.SGD(hooked.parameters(), lr=0.1),
        hooked,
        lam=0.3,
        entropy_model=LAW,
        in_backward=True,
        verbose=False,
    )
    for _ in range(3):
        theta = TERM.fit(matrices(with_term))
        rate = TERM(matrices(with_term), theta)
        (with_term(inputs).square().mean().float() + 0.3 * rate).backward()
        hooked(inputs).square().mean().float().backward()
        assert handle.rate().surrogate_bits_per_parameter == pytest.approx(float(rate.detach()), rel=1e-6)
        for mine, other in zip(hooked.parameters(), with_term.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.equal(mine.grad, other.grad)
            with torch.no_grad():
                mine.sub_(0.1 * mine.grad)
                other.copy_(mine)
            mine.grad = other.grad = None
    assert handle.rate().step == 3
    handle.remove()
    hooked(inputs).square().mean().backward()
    plain = [parameter.grad.clone() for parameter in matrices(hooked) if parameter.grad is not None]
    hooked.zero_grad()
    torch.nn.Sequential.forward(hooked, inputs).square().mean().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, matrices(hooked), strict=True))


def test_in_backward_is_for_gradients_only() -> None:
    net = network()
    with pytest.raises(ConfigError, match="in_backward"):
        rdo.attach(
            torch.optim.SGD(net.parameters(), lr=0.1), net, lam=1.0, apply="proximal", in_backward=True, verbose=False
        )
