"""Models of many tasks: linear heads run as one product while they are trained, and nobody sees a difference."""

import pytest
import torch
from torch import nn

import polytask as pt
from polytask import balancing as B
from polytask.balancing.types import Losses, MicroBatch
from polytask.errors import BalancerError
from polytask.fused import linear
from polytask.models import Head, MultiTaskModel
from polytask.models.heads import base
from polytask.sharing import Hard, MMoE, Separate

# Different widths, a standardised target and private layers: only the last does not join the others.
TASKS = [
    *(pt.tasks.binary(f"b{k}") for k in range(4)),
    *(pt.tasks.multiclass(f"c{k}", classes=3) for k in range(3)),
    pt.tasks.regression("n0"),
    pt.tasks.regression("n1", standardize=True),
    pt.tasks.binary("deep", hidden=[4]),
]
NAMES = [task.name for task in TASKS]
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def model(sharing=Hard, tasks=TASKS):
    torch.manual_seed(0)
    made = MultiTaskModel(sharing(nn.Linear(6, 32)), tasks, example=X[:2])
    made._head("n1").standardise(pt.tasks.regression("n1").fitted(torch.tensor([3.0, 5.0, 9.0])).head)
    return made


def losses(made, tap=None, names=NAMES):
    outs = made(X, names, **({} if tap is None else {"tap": tap}))
    return {name: out.sin().square().mean() for name, out in outs.items()}


def grads(made):
    found = {name: None if p.grad is None else p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, mine in found.items():
        assert (mine is None) == (expected[name] is None), name
        assert mine is None or torch.allclose(mine, expected[name], rtol=1e-5, atol=1e-6), name


@pytest.fixture
def calls(monkeypatch):
    """How many layers ran together in each fused product."""
    seen = []
    apply = linear._Fused.apply
    monkeypatch.setattr(
        linear._Fused, "apply", lambda plan, *rest: (seen.append(len(plan.widths)), apply(plan, *rest))[1]
    )
    return seen


@pytest.mark.parametrize("names", [NAMES, NAMES[:8]], ids=["all", "eight"])
@pytest.mark.parametrize("balancer", [None, "mgda", "nash_mtl", "graddrop"])
def test_training_sees_the_gradients_of_separate_heads(calls, monkeypatch, balancer, names):
    found = []
    for fewest in (base.FEWEST_FUSED, 100):
        monkeypatch.setattr(base, "FEWEST_FUSED", fewest)
        made = model()
        torch.manual_seed(1)
        if balancer is None:
            sum(losses(made, names=names).values()).backward()
        else:
            method = B.build(balancer, tasks=NAMES)
            batch = MicroBatch(tuple(names), lambda tap, made=made: Losses(losses(made, tap, names)))
            B.engine(method, made, at="features").backward([batch])
        found.append(grads(made))
    assert calls == [min(9, len(names))]
    assert_equal(*found)


@pytest.mark.parametrize("at", ["parameters", "last"])
def test_heads_run_one_by_one_where_each_loss_has_its_own_backward(calls, at):
    made = model()
    batch = MicroBatch(tuple(NAMES), lambda tap: Losses(losses(made, tap)))
    B.engine(B.build("mgda", tasks=NAMES), made, at=at).backward([batch])
    assert calls == []
    losses(made)
    assert calls == [9]


def test_heads_that_pool_maps_are_fused_too(calls, monkeypatch):
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for fewest in (base.FEWEST_FUSED, 100):
        monkeypatch.setattr(base, "FEWEST_FUSED", fewest)
        torch.manual_seed(0)
        made = MultiTaskModel(Hard(nn.Conv2d(3, 16, 3)), TASKS, example=x[:2])

        def forward(tap, made=made):
            outs = made(x, NAMES, tap=tap)
            return Losses({name: out.sin().square().mean() for name, out in outs.items()})

        B.engine(B.build("mgda", tasks=NAMES), made, at="features").backward([MicroBatch(tuple(NAMES), forward)])
        found.append(grads(made))
    assert calls == [9]
    assert_equal(*found)


def test_few_heads_and_answers_are_computed_one_by_one(calls):
    made = model()
    losses(made, names=NAMES[:7])
    with torch.no_grad():
        together = made(X)
        assert all(torch.equal(made(X, [name])[name], out) for name, out in together.items())
        assert all(torch.equal(made.extract(name)(X), out) for name, out in together.items())
    assert calls == []


def test_heads_of_different_features_are_computed_one_by_one(calls):
    made = model(Separate)
    assert_equal({n: o.detach() for n, o in made(X).items()}, {n: made.extract(n)(X).detach() for n in NAMES})
    made = model(lambda encoder: MMoE(encoder, experts=2))
    made(X)
    assert calls == []


def test_a_watched_or_foreign_head_runs_itself(calls):
    class Doubled(Head):
        def forward(self, features, inputs=None):
            return 2 * super().forward(features)

    made = model()
    made.heads["b0"] = Doubled(TASKS[0].head, (32,))
    seen = []
    hook = made.heads["b1"].register_forward_hook(lambda module, given, out: seen.append(out))
    outs = made(X)
    hook.remove()
    assert calls == []  # seven are left
    assert torch.equal(outs["b1"], seen[0])
    assert torch.equal(outs["b0"], made.extract("b0")(X))


def test_a_gradient_that_is_not_finite_names_the_task():
    made = model()

    def broken(tap):
        found = losses(made, tap)
        found["c1"] = found["c1"] * float("inf")
        return Losses(found)

    engine = B.engine(B.build("mgda", tasks=NAMES), made, at="features")
    with pytest.raises(BalancerError, match="c1"):
        engine.backward([MicroBatch(tuple(NAMES), broken)])


def test_weights_are_stored_a_head_each():
    assert {name.split(".")[1] for name in model().state_dict() if name.startswith("heads.")} == set(NAMES)
