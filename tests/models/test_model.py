import pytest
import torch
from torch import nn

from polytask.errors import RecipeError, ShapeError
from polytask.models import Head, MultiTaskModel
from polytask.sharing import Hard, NeedsExample, Separate
from polytask.tasks.task import HeadSpec, TargetSpec, Task


def make_task(name, **head):
    return Task(
        name=name,
        kind="number",
        loss=lambda raw, target: (raw - target) ** 2,
        head=HeadSpec(**head),
        metrics={},
        score=lambda raw: raw.detach().double().numpy(),
        decode=lambda raw: {"": raw.detach().numpy()},
        target=TargetSpec("number"),
        primary="mse",
        options={},
        refit=lambda targets, weights: {},
    )


def count(parameters):
    return sum(p.numel() for p in parameters)


def unsized():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU())


def test_hard_has_the_published_parameter_counts():
    model = MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a"), make_task("b")])
    assert count(model.shared_parameters()) == 36
    assert count(model.task_parameters("a")) + count(model.task_parameters("b")) == 10
    assert [(p.name, p.owner, p.parameters) for p in model.summary()] == [
        ("encoder", "shared", 36),
        ("head", "a", 5),
        ("head", "b", 5),
    ]


def test_summary_counts_private_layers_by_owner():
    model = MultiTaskModel(Hard(nn.Linear(8, 4), private=[3]), [make_task("a"), make_task("b")])
    parts = {(p.name, p.owner): p.parameters for p in model.summary()}
    assert parts == {
        ("encoder", "shared"): 36,
        ("private", "a"): 15,
        ("private", "b"): 15,
        ("head", "a"): 4,
        ("head", "b"): 4,
    }
    assert sum(parts.values()) == count(model.parameters())


def test_separate_shares_nothing():
    model = MultiTaskModel(Separate(nn.Linear(8, 4)), [make_task("a"), make_task("b")])
    assert model.shared_parameters() == []
    assert count(model.task_parameters("a")) == 41
    assert not model.supports_features


def test_forward_is_the_head_of_the_encoder():
    model = MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a", outputs=3, shift=2.0, scale=(1.0, 2.0, 3.0))])
    x = torch.randn(5, 8)
    head = model.heads["a"]
    expected = (model.sharing.encoder(x) @ head.output.weight.T + head.output.bias) * torch.tensor([1.0, 2, 3]) + 2
    torch.testing.assert_close(model(x)["a"], expected)


def test_forward_of_some_tasks_and_of_an_unknown_one():
    model = MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("depth"), make_task("seg")])
    x = torch.randn(5, 8)
    assert list(model(x, ["seg"])) == ["seg"]
    assert model(x)["seg"].shape == (5,)
    with pytest.raises(RecipeError, match=r"Unknown task 'segm'\. Known: depth, seg\. Did you mean 'seg'\?"):
        model(x, ["segm"])
    with pytest.raises(RecipeError, match="Did you mean 'depth'"):
        model.task_parameters("dept")


def test_wrong_arguments_say_what_to_do():
    with pytest.raises(RecipeError, match="Two tasks are named 'a'"):
        MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a"), make_task("a")])
    with pytest.raises(RecipeError, match="at least one task"):
        MultiTaskModel(Hard(nn.Linear(8, 4)), [])
    with pytest.raises(RecipeError, match="found Linear"):
        MultiTaskModel(nn.Linear(8, 4), [make_task("a")])


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: list(m.parameters()),
        lambda m: m.state_dict(),
        lambda m: m.load_state_dict({}),
        lambda m: m(torch.zeros(2, 8)),
        lambda m: m.shared_parameters(),
        lambda m: m.extract("a"),
        lambda m: m.summary(),
    ],
)
@pytest.mark.parametrize("kind", [Hard, Separate])
def test_a_model_that_is_not_built_says_so(ask, kind):
    model = MultiTaskModel(kind(unsized()), [make_task("a"), make_task("b")])
    assert not model.is_built
    with pytest.raises(NeedsExample, match=r"not built yet.*let fit build them"):
        ask(model)


@pytest.mark.parametrize("kind", [Hard, Separate])
def test_build_later_from_an_example(kind):
    model = MultiTaskModel(kind(unsized()), [make_task("a"), make_task("b")]).double()
    built = model.build(torch.zeros(2, 8, dtype=torch.float64))
    assert built is model
    assert model.is_built
    assert model(torch.zeros(3, 8, dtype=torch.float64))["b"].dtype == torch.float64
    at_once = MultiTaskModel(kind(unsized()), [make_task("a")], example=torch.zeros(2, 8))
    assert at_once.is_built


def test_an_example_that_an_encoder_cannot_read_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"):
        MultiTaskModel(Hard(unsized()), [make_task("a")], example=torch.zeros(2, 7))


def test_fitted_tasks_keep_the_weights_or_rebuild_the_head():
    model = MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a"), make_task("b", outputs=2)])
    x = torch.randn(5, 8)
    before = model(x)
    weights = list(model.heads["a"].parameters())
    model.replace_tasks([make_task("b", outputs=3), make_task("a", shift=10.0, scale=2.0)])
    assert list(model.tasks) == ["a", "b"]
    after = model(x)
    torch.testing.assert_close(after["a"], before["a"] * 2 + 10)
    assert all(new is old for new, old in zip(model.heads["a"].parameters(), weights, strict=True))
    assert after["b"].shape == (5, 3)
    with pytest.raises(RecipeError, match="tasks are a, b; found c"):
        model.replace_tasks([make_task("c")])


def test_extract_is_the_task_alone():
    for sharing in (Hard(nn.Linear(8, 4)), Hard(nn.Linear(8, 4), private=[3]), Separate(nn.Linear(8, 4))):
        model = MultiTaskModel(sharing, [make_task("a"), make_task("b")])
        x = torch.randn(5, 8)
        alone = model.extract("b")
        torch.testing.assert_close(alone(x), model(x)["b"])
        used = {id(p) for p in alone.parameters()}
        assert used.isdisjoint(id(p) for p in model.task_parameters("a"))
        assert used >= {id(p) for p in model.task_parameters("b")}


def test_extract_exports():
    model = MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a", shift=1.0)]).eval()
    x = torch.randn(5, 8)
    exported = torch.export.export(model.extract("a"), (x,))
    torch.testing.assert_close(exported.module()(x), model(x)["a"])


def test_any_task_name_works():
    names = ["type", "a.b", "keys", "training", "type%", "income level", "heads"]
    for sharing in (Hard(nn.Linear(8, 4), private=[2]), Separate(nn.Linear(8, 4))):
        model = MultiTaskModel(sharing, [make_task(name) for name in names])
        assert list(model(torch.zeros(2, 8))) == names
        assert {part.owner for part in model.summary()} - {"shared"} == set(names)
        model.load_state_dict(model.state_dict())


def test_frozen_parameters_are_nobodys():
    encoder = nn.Linear(8, 4)
    encoder.bias.requires_grad_(False)
    model = MultiTaskModel(Hard(encoder), [make_task("a")])
    assert [p is encoder.weight for p in model.shared_parameters()] == [True]


def test_initial_weights_follow_the_callers_seed():
    def build():
        torch.manual_seed(3)
        return MultiTaskModel(Hard(nn.Linear(8, 4)), [make_task("a", hidden=(4,))])

    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_head_buffers_exist_only_where_needed():
    assert set(Head(HeadSpec(), (4,)).state_dict()) == {"output.weight", "output.bias"}
    head = Head(HeadSpec(shift=3.0, scale=2.0), (4,))
    assert {"shift", "scale"} <= set(head.state_dict())
    assert head.shift.dtype == torch.float32


def test_head_pools_feature_maps_and_refuses_other_shapes():
    head = Head(HeadSpec(outputs=2), (4, 3, 5))
    maps = torch.randn(6, 4, 3, 5)
    expected = maps.mean((2, 3)) @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(head(maps), expected)
    with pytest.raises(ShapeError, match=r"have the shape \(7, 4\).*pool or flatten"):
        Head(HeadSpec(), (7, 4))
    with pytest.raises(ShapeError, match="2 outputs but its shift has 3 numbers"):
        Head(HeadSpec(outputs=2, shift=(1.0, 2.0, 3.0)), (4,))


def test_head_is_float32_under_autocast():
    head = Head(HeadSpec(outputs=2, hidden=(4,), shift=1000.0), (8,))
    features = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = head(features)
        hidden = head.layers(features)
        assert torch.is_autocast_enabled("cpu")
    assert hidden.dtype == torch.bfloat16
    assert raw.dtype == torch.float32
    torch.testing.assert_close(raw, head.output(hidden.float()) + 1000.0)


def test_gradients_reach_every_parameter():
    for sharing in (Hard(nn.Linear(8, 4)), Hard(nn.Linear(8, 4), private=[6]), Separate(nn.Linear(8, 4))):
        model = MultiTaskModel(sharing, [make_task("a", hidden=(16,)), make_task("b", outputs=2)])
        sum(raw.square().sum() for raw in model(torch.randn(32, 8)).values()).backward()
        assert all(p.grad is not None for p in model.parameters())
