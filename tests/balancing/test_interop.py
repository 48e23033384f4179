from __future__ import annotations

import pytest
import torch

from polytask import balancing as B
from polytask.balancing.making import split
from polytask.errors import BalancerError

aggregation = pytest.importorskip("torchjd.aggregation")
scalarization = pytest.importorskip("torchjd.scalarization")

ROWS = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_an_aggregator_over_the_gramian_runs_on_the_gramian():
    made = B.build(aggregation.AlignedMTL(), tasks=["a", "b", "c"])
    assert isinstance(made, B.GramianWeighting)
    torch.testing.assert_close(B.aggregate(ROWS, made), aggregation.AlignedMTL()(ROWS))


def test_an_aggregator_over_the_jacobian_gets_the_jacobian():
    made = B.build(aggregation.TrimmedMean(1), tasks=["a", "b", "c"])
    assert isinstance(made, B.JacobianAggregator)
    torch.testing.assert_close(B.aggregate(ROWS, made), aggregation.TrimmedMean(1)(ROWS))


def test_a_weighting_gives_its_weights():
    weighting = aggregation.PCGradWeighting()
    torch.manual_seed(0)
    expected = weighting(ROWS @ ROWS.T)
    torch.manual_seed(0)
    torch.testing.assert_close(B.weights(ROWS @ ROWS.T, weighting), expected)


def test_a_scalarizer_is_a_loss_weighting_with_the_same_gradient():
    scalarizer = scalarization.STCH(mu=0.5)
    shared = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    losses = {"a": shared.square().sum(), "b": (shared - 1).square().sum()}
    made, rest = split(scalarizer, tasks=["a", "b"])
    assert rest == {}
    (expected,) = torch.autograd.grad(
        scalarization.STCH(mu=0.5)(torch.stack(list(losses.values()))), shared, retain_graph=True
    )
    B.backward(losses, shared=[shared], balancer=made)
    torch.testing.assert_close(shared.grad, expected)


def test_other_objects_are_refused():
    with pytest.raises(BalancerError, match="got int"):
        B.build(3, tasks=["a"])
    with pytest.raises(BalancerError, match="needs a 'name'"):
        B.build({"nam": "mgda"}, tasks=["a"])
    with pytest.raises(BalancerError, match="its options are fixed"):
        B.build(B.build("mgda", tasks=["a"]), tasks=["a"], c=1)
