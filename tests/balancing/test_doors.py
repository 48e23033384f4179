from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask import balancing as B
from polytask.errors import BalancerError, RecipeError

TASKS = ("a", "b", "c")


def jacobian(dtype=torch.float64):
    return torch.randn(3, 7, dtype=dtype, generator=torch.Generator().manual_seed(3))


def test_aggregate_is_the_weighted_sum_of_rows():
    rows = jacobian()
    weights = B.weights(rows @ rows.T, "cagrad", c=0.3)
    torch.testing.assert_close(B.aggregate(rows, "cagrad", c=0.3), weights @ rows)


@pytest.mark.parametrize("power", [-30, 30])
def test_aggregate_keeps_its_digits_at_any_scale(power):
    rows = jacobian(torch.float32)
    scaled = B.aggregate(rows * 10.0**power, "mgda")
    torch.testing.assert_close(scaled / 10.0**power, B.aggregate(rows, "mgda"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.ones(2, 3), "square"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "not finite in rows"),
        (torch.ones(3), "one row a task"),
        (torch.ones(2, 2, dtype=torch.int64), "floating-point"),
    ],
)
def test_weights_refuses_what_is_no_gramian(matrix, words):
    with pytest.raises(BalancerError, match=words):
        B.weights(matrix, "mgda")


def test_a_float32_gramian_of_low_rank_is_accepted():
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    rows = rows @ torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    assert B.weights(rows @ rows.T, "mgda").sum().item() == pytest.approx(1.0)


def test_unknown_options_and_names_are_errors():
    with pytest.raises(RecipeError, match="Did you mean 'cagrad'"):
        B.aggregate(jacobian(), "cagrd")
    with pytest.raises(RecipeError, match="Unknown option 'd'"):
        B.aggregate(jacobian(), "cagrad", d=1)
    with pytest.raises(BalancerError, match="weighs losses"):
        B.aggregate(jacobian(), "equal")
    with pytest.raises(BalancerError, match="say how a method is run"):
        B.build("mgda", tasks=TASKS, at="features")
    with pytest.raises(RecipeError, match="Unknown option 'order'"):
        B.aggregate(jacobian(), "mgda", order=[0, 1, 2])
    with pytest.raises(BalancerError, match="set up for tasks"):
        B.build(B.build("mgda", tasks=["x"]), tasks=["y"])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], torch.tensor([1, 2, 0])])
def test_a_given_order_is_the_order_of_the_projections(order):
    rows = jacobian() - 0.9 * jacobian().mean(0)
    expected = torch.zeros(7, dtype=torch.float64)
    for i in range(3):
        corrected = rows[i].clone()
        for j in [int(j) for j in order if int(j) != i]:
            corrected -= torch.clamp(corrected @ rows[j], max=0) / (rows[j] @ rows[j]) * rows[j]
        expected += corrected
    torch.testing.assert_close(B.aggregate(rows, "pcgrad", order=order), expected)
    torch.testing.assert_close(B.weights(rows @ rows.T, "pcgrad", order=order) @ rows, expected)


def test_the_order_matters_where_rows_conflict():
    rows = jacobian() - 0.9 * jacobian().mean(0)
    one, other = (B.aggregate(rows, "pcgrad", order=order) for order in ([0, 1, 2], [2, 1, 0]))
    assert not torch.allclose(one, other)
    with pytest.raises(BalancerError, match=r"must name every task once.* got \[0, 1, 1\]"):
        B.aggregate(rows, "pcgrad", order=[0, 1, 1])
    drawn = [B.aggregate(rows, "pcgrad", generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_given_uniform_numbers_decide_the_signs():
    rows = torch.tensor([[3.0, 1.0, -2.0], [-1.0, 1.0, 1.0]])
    # P is 3/4, 1 and 1/3: the numbers below keep the positive, the positive and the negative sign.
    kept = B.aggregate(rows, "graddrop", uniform=torch.tensor([0.7, 0.99, 0.4]))
    torch.testing.assert_close(kept, torch.tensor([3.0, 2.0, -2.0]))
    flipped = B.aggregate(rows, "graddrop", uniform=torch.tensor([0.8, 0.99, 0.3]))
    torch.testing.assert_close(flipped, torch.tensor([-1.0, 2.0, 1.0]))
    with pytest.raises(BalancerError, match=r"uniform has shape \[2\]; give one number for each of the 3"):
        B.aggregate(rows, "graddrop", uniform=torch.ones(2))
    with pytest.raises(RecipeError, match="Unknown option 'uniform'"):
        B.aggregate(rows, "mgda", uniform=torch.ones(3))


def net():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    heads = {t: nn.Linear(5, 1).double() for t in TASKS}
    return trunk, heads, torch.randn(9, 4, dtype=torch.float64)


def losses_of(heads, zs):
    return {t: (k + 1) * (heads[t](zs[t]) - k).square().mean() for k, t in enumerate(heads)}


def grads(modules):
    return torch.cat([p.grad.reshape(-1) for module in modules for p in module.parameters()])


def test_node_and_backward_at_the_features_agree():
    trunk, heads, x = net()
    node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
    report = node.backward(losses_of(heads, node(trunk(x))))
    by_node = grads([trunk, *heads.values()])
    for module in [trunk, *heads.values()]:
        module.zero_grad()
    z = trunk(x)
    again = B.backward(
        losses_of(heads, dict.fromkeys(TASKS, z)),
        shared=trunk.parameters(),
        balancer=B.build("mgda", tasks=TASKS),
        features=z,
        at="features",
    )
    torch.testing.assert_close(grads([trunk, *heads.values()]), by_node)
    torch.testing.assert_close(again.gramian, report.gramian)


def test_balance_is_the_node_for_a_bare_backward():
    trunk, heads, x = net()
    node = B.Node(B.build("upgrad", tasks=TASKS))
    node.backward(losses_of(heads, node(trunk(x))))
    expected = grads([trunk])
    trunk.zero_grad()
    zs = B.balance(trunk(x), 3, B.build("upgrad", tasks=TASKS))
    sum(losses_of(heads, dict(zip(TASKS, zs, strict=True))).values()).backward()
    torch.testing.assert_close(grads([trunk]), expected)


@pytest.mark.parametrize("at", ["parameters", "last"])
def test_backward_finds_the_heads_by_itself(at):
    trunk, heads, x = net()
    plain = losses_of(heads, dict.fromkeys(TASKS, trunk(x)))
    rows = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(plain[t], list(trunk.parameters()), retain_graph=True)]
            )
            for t in TASKS
        ]
    )
    own = {t: torch.autograd.grad(plain[t], list(heads[t].parameters()), retain_graph=True) for t in TASKS}
    report = B.backward(plain, shared=trunk.parameters(), balancer=B.build("mgda", tasks=TASKS), at=at)
    weights = torch.stack([report.weights[t] for t in TASKS])
    torch.testing.assert_close(grads([trunk]), weights @ rows)
    for t in TASKS:
        for p, g in zip(heads[t].parameters(), own[t], strict=True):
            torch.testing.assert_close(p.grad, g)


def test_several_feature_tensors_add_their_gramians():
    torch.manual_seed(0)
    one, two, x = nn.Linear(3, 4).double(), nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    u, v = one(x), two(x)
    losses = {"a": u.square().sum() + v.sum(), "b": u.sum()}
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(
                    losses[t], (u, v), retain_graph=True, materialize_grads=True, allow_unused=True
                )
            ]
        )
        for t in ("a", "b")
    ]
    expected = torch.stack(rows) @ torch.stack(rows).T
    node = B.Node(B.build("mgda", tasks=["a", "b"]))
    zs = node({"u": one(x), "v": two(x)})
    report = node.backward({"a": zs["a"]["u"].square().sum() + zs["a"]["v"].sum(), "b": zs["b"]["u"].sum()})
    torch.testing.assert_close(report.gramian, expected)


def test_an_absent_task_is_deleted_at_the_node():
    trunk, heads, x = net()
    node = B.Node(B.build("mgda", tasks=TASKS))
    zs = node(trunk(x))
    report = node.backward({t: loss for t, loss in losses_of(heads, zs).items() if t != "b"})
    assert tuple(report.weights) == ("a", "c")
    assert report.gramian.shape == (2, 2)


def test_wrong_use_of_backward_is_explained():
    trunk, heads, x = net()
    z = trunk(x)
    losses = losses_of(heads, dict.fromkeys(TASKS, z))
    mgda = B.build("mgda", tasks=TASKS)
    with pytest.raises(BalancerError, match="share none"):
        B.backward(losses, shared=[], balancer=mgda)
    with pytest.raises(BalancerError, match=r"No loss reaches shared parameter number 4 of shape \[2, 2\]"):
        B.backward(losses, shared=[*trunk.parameters(), nn.Parameter(torch.ones(2, 2))], balancer=mgda)
    with pytest.raises(BalancerError, match="needs features="):
        B.backward(losses, shared=trunk.parameters(), balancer=mgda, at="features")
    with pytest.raises(BalancerError, match="only used with at='features'"):
        B.backward(losses, shared=trunk.parameters(), balancer=mgda, features=z)
    with pytest.raises(BalancerError, match="do not lead to the loss of 'a'"):
        B.backward(losses, shared=trunk.parameters(), balancer=mgda, features=trunk(x), at="features")
    with pytest.raises(BalancerError, match="Did you mean 'features'"):
        B.backward(losses, shared=trunk.parameters(), balancer=mgda, at="feature")
    with pytest.raises(BalancerError, match="has no graph"):
        B.backward({"a": torch.tensor(1.0)}, shared=trunk.parameters(), balancer=mgda)
    with pytest.raises(BalancerError, match="Unknown task 'aa'"):
        B.backward({"aa": losses["a"]}, shared=trunk.parameters(), balancer=mgda)


def test_wrong_use_of_the_node_is_explained():
    trunk, heads, x = net()
    with pytest.raises(BalancerError, match="weighs losses"):
        B.Node(B.build("equal", tasks=TASKS))
    node = B.Node(B.build("mgda", tasks=TASKS))
    with pytest.raises(BalancerError, match="Call the node on the features first"):
        node.backward({"a": torch.ones((), requires_grad=True)})
    with pytest.raises(BalancerError, match="need no gradient"):
        node(x)
    zs = node(trunk(x))
    with pytest.raises(BalancerError, match="do not lead to the loss of 'b', 'c'"):
        node.backward(losses_of(heads, dict.fromkeys(TASKS, zs["a"])))
    with pytest.raises(BalancerError, match="reads the losses"):
        B.balance(trunk(x), 3, B.build("gradnorm", tasks=TASKS))


def test_a_loss_weighting_in_ones_own_loop():
    trunk, heads, x = net()
    uncertainty = B.build("uncertainty", tasks=TASKS)
    losses = losses_of(heads, dict.fromkeys(TASKS, trunk(x)))
    B.backward(losses, balancer=uncertainty)
    assert all(p.grad is not None for p in [*trunk.parameters(), *uncertainty.parameters()])
