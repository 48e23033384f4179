import copy

import pytest
import torch
from torch import nn

from polytask import registry
from polytask.balancing.engines.choose import engine
from polytask.balancing.making import build as build_balancer
from polytask.balancing.types import Losses, MicroBatch
from polytask.errors import BalancerError, RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing.attention import TaskAttention
from polytask.sharing.hierarchical import Hierarchical
from polytask.sharing.soft import Soft
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]
FEEDS = {"b": ["a"], "c": ["a", "b"]}
OPTIONS = {
    "soft": {"distance": "relation"},
    "attention": {"width": 6, "heads": 2, "tokens": 2},
    "hierarchical": {"feeds": FEEDS, "layers": [5, 3]},
}


class Sequence(nn.Module):
    """A Transformer; ``mean`` averages over its positions, else it returns the whole sequence."""

    def __init__(self, mean):
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers, self.mean = nn.Sequential(*layers), mean

    def forward(self, x):
        z = self.layers(x)
        return z.mean(1) if self.mean else z


ENCODERS = {
    "mlp": (lambda: MLP(6, [5, 4], activation="gelu"), (6,)),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group", pool=False), (2, 8, 8)),
    "transformer": (lambda: Sequence(mean=True), (5, 8)),
}


def made(kind, encoder="mlp", **options):
    make, shape = ENCODERS[encoder]
    sharing = registry.build("sharings", kind, {**OPTIONS[kind], **options}, encoder=make())
    x = torch.randn(4, *shape)
    sharing.setup(TASKS, x)
    return sharing, x


def weights(sharing):
    """One row a task of all weights."""
    return torch.stack([torch.cat([p.flatten() for p in sharing.task_parameters(t)]) for t in TASKS]).detach()


def test_soft_penalties_are_what_the_papers_say():
    sharing, _ = made("soft", distance="mean")
    theta = weights(sharing)
    torch.testing.assert_close(sharing.penalties()["distance"], 3 * theta.var(0, unbiased=False).sum())
    trace, _ = made("soft", distance="trace_norm")
    every = [[p.detach().flatten() for p in trace.task_parameters(t)] for t in TASKS]
    expected = sum(torch.linalg.svdvals(torch.stack(alike)).sum() for alike in zip(*every, strict=True))
    torch.testing.assert_close(trace.penalties()["distance"], expected)


def test_the_relation_solves_its_problem_and_finds_planted_groups():
    sharing = Soft(nn.Linear(6, 4), "relation", temperature=0.5)
    sharing.setup(["a", "b", "c", "d"], None)
    with torch.no_grad():
        centre = {"a": 1.0, "b": 1.0, "c": -1.0, "d": -1.0}
        for task, value in centre.items():
            for p in sharing.task_parameters(task):
                p.copy_(value + 0.1 * torch.randn_like(p))
    relation = sharing.inspect()["relation"]
    assert relation.diagonal().tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(relation.sum(1), torch.ones(4))
    assert relation.argmax(1).tolist() == [1, 0, 3, 2]
    theta = torch.stack([torch.cat([p.flatten() for p in sharing.task_parameters(t)]) for t in centre]).detach()
    squares = torch.cdist(theta, theta).square()
    # At the minimum of <A, D> + tau sum A log A over the simplex, D + tau log A is equal along a row.
    tau = 0.5 * squares.sum() / 12
    level = squares + tau * relation.clamp_min(1e-30).log()
    for i in range(4):
        row = torch.cat([level[i, :i], level[i, i + 1 :]])
        torch.testing.assert_close(row, row.mean().expand(3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sharing.penalties()["distance"], (relation * squares).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", ["mean", "trace_norm", "relation"])
def test_training_on_the_penalty_alone_draws_networks_together(distance):
    sharing, _ = made("soft", distance=distance)
    optimizer = torch.optim.SGD(sharing.parameters(), lr=0.02)
    before = sharing.penalties()["distance"].item()
    for _ in range(50):
        optimizer.zero_grad()
        sharing.penalties()["distance"].backward()
        optimizer.step()
    assert sharing.penalties()["distance"].item() < 0.7 * before


def test_equal_networks_are_at_distance_zero_with_finite_gradients():
    sharing, _ = made("soft", distance="relation", reset=False)
    value = sharing.penalties()["distance"]
    assert value.item() == 0
    value.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in sharing.parameters())
    alone = Soft(nn.Linear(3, 4))
    alone.setup(["a"], None)
    assert alone.penalties() == {}
    assert alone.inspect() == {}


def test_gradient_methods_are_refused_where_nothing_is_shared():
    model = MultiTaskModel(Soft(nn.Linear(3, 4)), [regression("a"), regression("b")])
    with pytest.raises(BalancerError, match="share none that is trained"):
        engine(build_balancer("mgda", tasks=["a", "b"]), model)


@pytest.mark.parametrize("encoder", [*ENCODERS, "sequence"])
def test_attention_values(encoder):
    if encoder == "sequence":
        sharing, x = TaskAttention(Sequence(mean=False), 6, heads=2), torch.randn(4, 5, 8)
        sharing.setup(TASKS, x)
    else:
        sharing, x = made("attention", encoder)
    z = sharing.encoder(x)
    if z.dim() == 4:
        tokens = z.permute(0, 2, 3, 1).reshape(len(x), -1, z.shape[1])
    elif z.dim() == 2:
        tokens = torch.stack(z.chunk(2, 1), 1) + sharing.places
    else:
        tokens = z
    keys, values = sharing.keys(tokens), sharing.values(tokens)
    for task, feature in sharing(x, ["c", "a"]).items():
        parts = []
        for q, k, v in zip(sharing.queries[task].chunk(2), keys.chunk(2, -1), values.chunk(2, -1), strict=True):
            asked = q.expand(len(x), 1, 3)
            parts.append(nn.functional.scaled_dot_product_attention(asked, k, v).squeeze(1))
        torch.testing.assert_close(feature, torch.cat(parts, 1))
    shown = sharing.inspect()
    assert set(shown) == {"attention of a", "attention of c"}
    torch.testing.assert_close(shown["attention of a"].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_hierarchical_values(encoder, detach):
    sharing, x = made("hierarchical", encoder, detach=detach)
    z = sharing.encoder(x)
    z = z.mean((2, 3)) if z.dim() == 4 else z
    a = sharing.layers["a"](z)
    b = sharing.layers["b"](torch.cat([z, a], 1))
    c = sharing.layers["c"](torch.cat([z, a, b], 1))
    for task, expected in zip(TASKS, (a, b, c), strict=True):
        torch.testing.assert_close(sharing(x, [task])[task], expected)
        torch.testing.assert_close(sharing(x, TASKS)[task], expected)


def test_a_forward_runs_the_trunk_once_and_only_the_layers_below():
    sharing, x = made("hierarchical")
    calls = []
    sharing.encoder.register_forward_hook(lambda *_: calls.append("trunk"))
    for task in TASKS:
        sharing.layers[task].register_forward_hook(lambda *_, task=task: calls.append(task))
    sharing(x, ["b"])
    assert calls == ["trunk", "a", "b"]
    calls.clear()
    sharing(x, TASKS)
    assert calls == ["trunk", "a", "b", "c"]


@pytest.mark.parametrize("case", [*OPTIONS, "detached"])
def test_task_parameters_are_those_that_one_task_alone_reaches(case):
    smooth = {"activation": "gelu"}
    options = {"detached": {"detach": True, **smooth}, "hierarchical": smooth}.get(case, {})
    sharing, x = made("hierarchical" if case == "detached" else case, **options)
    touched = {}
    for task in TASKS:
        sharing.zero_grad(set_to_none=True)
        sharing(x, TASKS)[task].square().sum().backward()
        touched[task] = {id(p) for p in sharing.parameters() if p.grad is not None}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        assert {id(p) for p in sharing.task_parameters(task)} == alone
    assert alone


@pytest.mark.parametrize("kind", ["attention", "hierarchical"])
def test_balancing_at_the_features_reaches_every_parameter(kind):
    sharing = registry.build("sharings", kind, OPTIONS[kind], encoder=MLP(6, [5, 4], activation="gelu"))
    model = MultiTaskModel(sharing, [regression(task) for task in TASKS])
    x = torch.randn(8, 6)

    def forward(tap):
        return Losses({task: (z - 1).square().mean() for task, z in model(x, tap=tap).items()})

    engine(build_balancer("mgda", tasks=TASKS), model, at="features").step(
        [MicroBatch(tuple(TASKS), forward)], tuple(TASKS)
    )
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_some_tasks_copies_state_bf16_and_the_tap(kind, encoder):
    sharing, x = made(kind, encoder)
    sharing.eval()
    taps = []

    def tap(features):
        taps.append(features)
        return dict.fromkeys(TASKS, features)

    whole = sharing(x, TASKS, tap)
    assert len(taps) == 1
    assert bool(taps[0]) == sharing.supports_features == (kind != "soft")
    other, _ = made(kind, encoder)
    other.load_state_dict(sharing.state_dict())
    for twin in (sharing.extract("b"), other.eval().extract("b"), copy.deepcopy(sharing).extract("b")):
        torch.testing.assert_close(twin(x), whole["b"])
    with torch.autocast("cpu", torch.bfloat16):
        for task, feature in sharing(x, TASKS).items():
            torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_bundle_makes_the_same_model(kind, tmp_path):
    options = {**OPTIONS[kind], **({"feeds": {"b": ["a"]}} if kind == "hierarchical" else {})}
    model = MultiTaskModel(
        registry.build("sharings", kind, options, encoder=MLP(6, [5, 4])), [binary("a"), regression("b")]
    )
    x = torch.randn(3, 6)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Soft(nn.Linear(3, 4), "maen"), "Unknown distance 'maen'.*Did you mean 'mean'"),
        (lambda: Soft(nn.Linear(3, 4), temperature=0.0), "temperature is 0.0"),
        (lambda: TaskAttention(nn.Linear(3, 4), 6, heads=4), "the heads have to divide the width"),
        (lambda: TaskAttention(nn.Linear(3, 4), tokens=0), "tokens is 0"),
        (lambda: Hierarchical(nn.Linear(3, 4), {"a": ["b"], "b": ["a"]}), "in a circle: (a -> b -> a|b -> a -> b)"),
        (lambda: Hierarchical(nn.Linear(3, 4), {"a": ["a"]}), "in a circle: a -> a"),
        (lambda: Hierarchical(nn.Linear(3, 4), {}, layers=[]), "layers is empty"),
        (lambda: Hierarchical(nn.Linear(3, 4), {}, activation="rleu"), "Did you mean 'relu'"),
        (lambda: Hierarchical(nn.Linear(3, 4), {"cc": ["a"]}).setup(["a", "c"], None), "Did you mean 'c'"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_tokens_have_to_divide_a_vector():
    with pytest.raises(ShapeError, match=r"vectors of 4 features, which 3 tokens do not divide.*pool=False"):
        TaskAttention(nn.Linear(3, 4), tokens=3).setup(TASKS, None)
