"""Weighted sums of experts: values, first and second derivatives."""

import pytest
import torch
from torch import nn

from polytask.sharing.experts import Experts
from polytask.sharing.mixed import mixed


def plain(outs, weights):
    return [torch.einsum("ne,ne...->n...", one, outs) for one in weights]


def given(*shape, sums=2):
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(5, 3, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = [torch.rand(5, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(sums)]
    return outs, weights


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
@pytest.mark.parametrize("sums", [1, 3])
def test_the_sums_and_their_gradients(shape, sums):
    outs, weights = given(*shape, sums=sums)
    found, wanted = mixed(outs, weights), plain(outs, weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)

    def slopes(values):
        total = sum((k + 1) * value.square().sum() for k, value in enumerate(values))
        return torch.autograd.grad(total, [outs, *weights])

    for one, other in zip(slopes(found), slopes(wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_gradients():
    outs, weights = given(2)
    assert torch.autograd.gradgradcheck(lambda z, *w: tuple(mixed(z, w)), (outs, *weights))


def test_a_sum_that_no_loss_reads_has_no_gradient():
    outs, weights = given(4)
    first, _ = mixed(outs, weights)
    slopes = torch.autograd.grad(first.sum(), [outs, *weights], allow_unused=True)
    torch.testing.assert_close(slopes[0], weights[0].detach().unsqueeze(-1).expand_as(outs))
    assert slopes[2] is None


def test_frozen_experts_and_frozen_gates():
    outs, weights = given(4)
    mixed(outs.detach(), weights)[0].sum().backward()
    torch.testing.assert_close(weights[0].grad, outs.detach().sum(-1))
    mixed(outs, [one.detach() for one in weights])[1].sum().backward()
    torch.testing.assert_close(outs.grad, weights[1].detach().unsqueeze(-1).expand_as(outs))


@pytest.mark.parametrize("layers", [[nn.Linear(4, 3), nn.ReLU()], [nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.ReLU()]])
@pytest.mark.parametrize("count", [1, 3])
def test_rectifying_in_place_touches_nothing_else(layers, count):
    bank = Experts(nn.Sequential(*layers, nn.Linear(3, 2), nn.ReLU()), count)
    x = torch.randn(6, 4, requires_grad=True)
    kept = x.detach().clone()
    out = bank(x)
    assert torch.equal(x.detach(), kept)
    state = bank.state()
    for number in range(count):
        one = {name: stack[number] for name, stack in state.items()}
        torch.testing.assert_close(out[:, number], torch.func.functional_call(bank.template, one, (x,)))
    out.sum().backward()
    slope = x.grad.clone()
    x.grad = None
    sum(
        torch.func.functional_call(bank.template, {k: v[i] for k, v in state.items()}, (x,)).sum() for i in range(count)
    ).backward()
    torch.testing.assert_close(slope, x.grad)
