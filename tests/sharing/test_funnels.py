"""esmm and aitm: steps of a funnel, whose outputs or features hang together."""

import copy
import math

import pytest
import torch
from torch import nn

import polytask as pt
from polytask import registry
from polytask.data.schema import CategoryColumn, TableSchema
from polytask.data.source import TensorSource
from polytask.errors import RecipeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet, Tabular
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing import AITM, ESMM
from polytask.sharing.esmm import product_logit
from polytask.tasks import binary, regression
from polytask.training.fit import train
from polytask.training.settings import PenaltySettings, TrainingSettings

ORDER = ["click", "cart", "buy"]
KINDS = {"esmm": ESMM, "aitm": AITM}


class Mean(nn.Module):
    def forward(self, z):
        return z.mean(1)


def transformer():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers, Mean())


ENCODERS = {
    "mlp": (lambda: MLP(6, [5, 4]), (6,)),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group"), (2, 8, 8)),
    "transformer": (transformer, (5, 8)),
}


def made(kind, encoder="mlp", **options):
    """A model of three steps and, in their midst, a task that is no step."""
    make, shape = ENCODERS[encoder]
    x = torch.randn(7, *shape)
    tasks = [binary("buy"), regression("size"), binary("click"), binary("cart")]
    return MultiTaskModel(KINDS[kind](make(), ORDER, **options), tasks, example=x), x


def tower(model, task, x):
    """One tower's features: the encoder with that tower's weights."""
    sharing = model.sharing
    own = sharing.towers[task]
    return torch.func.functional_call(own.template, {n: t[0] for n, t in own.state().items()}, (x,))


def esmm(model, x):
    raw = {task: model.heads[task](tower(model, task, x)).double() for task in model.tasks}
    chance, made = 1.0, {"size": raw["size"]}
    for step in ORDER:
        chance = chance * raw[step].sigmoid()
        made[step] = torch.log(chance / (1 - chance))
    return made


def aitm(model, x):
    own = {task: tower(model, task, x) for task in model.tasks}
    z = {"size": own["size"], "click": own["click"]}
    for before, step in (("click", "cart"), ("cart", "buy")):
        maps = model.sharing.transfers[step]
        p = maps.carry(z[before])
        logits = [(maps.queries(u) * maps.keys(u)).sum(1) / math.sqrt(u.shape[1]) for u in (p, own[step])]
        first = torch.sigmoid(logits[0] - logits[1]).unsqueeze(1)
        z[step] = first * maps.values(p) + (1 - first) * maps.values(own[step])
    return {task: model.heads[task](z[task]).double() for task in model.tasks}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("kind", "reference"), [("esmm", esmm), ("aitm", aitm)])
def test_values(kind, reference, encoder):
    model, x = made(kind, encoder)
    expected = reference(model, x)
    for asked in (None, ["buy"], ["size", "cart"]):
        found = model(x, asked)
        assert list(found) == list(asked or model.tasks)
        for task, raw in found.items():
            torch.testing.assert_close(raw.double(), expected[task], rtol=1e-4, atol=1e-5)


def test_the_logit_of_a_product_neither_overflows_nor_cancels():
    a = torch.tensor([0.0, 3.0, -5.0, 40.0, -200.0, 200.0, 200.0, -3e38], requires_grad=True)
    b = torch.tensor([0.0, -1.0, 2.0, 40.0, -300.0, 200.0, -7.0, 3e38])
    found = product_logit(a, b)
    p = a.detach()[:3].double().sigmoid() * b[:3].double().sigmoid()
    torch.testing.assert_close(found[:3].double(), torch.log(p / (1 - p)), rtol=1e-6, atol=1e-6)
    # Far out: 1 - p is the sum of what either lacks; a small p is the product of both.
    far = torch.tensor([40 - math.log(2), -500.0, 200 - math.log(2), -7.0])
    torch.testing.assert_close(found[3:7], far, rtol=1e-6, atol=0)
    assert found[7] == a[7]
    found.sum().backward()
    assert a.grad.isfinite().all()


def test_later_steps_are_less_likely_and_the_quotient_is_the_next_steps_chance():
    model, x = made("esmm")
    chances = {task: raw.sigmoid() for task, raw in model(x).items()}
    assert (chances["buy"] <= chances["cart"]).all()
    assert (chances["cart"] <= chances["click"]).all()
    alone = model.heads["cart"](tower(model, "cart", x)).sigmoid()
    torch.testing.assert_close(chances["cart"] / chances["click"], alone)


# Towers of 8 x 4 with biases. For the second step four maps of 4 x 4 with biases.
@pytest.mark.parametrize(("kind", "transfers"), [("esmm", []), ("aitm", [("transfers", "b", 80)])])
def test_parameter_counts_of_the_small_case(kind, transfers):
    sharing = KINDS[kind](MLP(8, [4]), ["a", "b"])
    model = MultiTaskModel(sharing, [binary("a"), binary("b")])
    parts = [(part.name, part.owner, part.parameters) for part in model.summary()]
    towers = [("towers", "shared", 36), ("towers", "b", 36)]
    heads = [("head", "shared" if kind == "esmm" else "a", 5), ("head", "b", 5)]
    assert parts == [*towers, *transfers, *heads]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_task_parameters_are_those_that_one_task_alone_reaches(kind, encoder):
    model, x = made(kind, encoder)
    touched = {}
    for task in model.tasks:
        model.zero_grad(set_to_none=True)
        model(x)[task].square().sum().backward()
        touched[task] = {id(p) for p in model.parameters() if p.grad is not None}
    assert set().union(*touched.values()) == {id(p) for p in model.parameters()}
    for task in model.tasks:
        alone = touched[task] - set().union(*(touched[other] for other in model.tasks if other != task))
        assert {id(p) for p in model.task_parameters(task)} == alone
    owners = {part.owner for part in model.summary() if part.name == "head"}
    assert owners == ({"shared", "buy", "size"} if kind == "esmm" else set(model.tasks))


@pytest.mark.parametrize("kind", KINDS)
def test_the_beginning_of_a_staged_encoder_is_shared(kind):
    schema = TableSchema(categories=(CategoryColumn("sex", ("f", "m")),))
    model = MultiTaskModel(KINDS[kind](Tabular(schema, hidden=[4]), ["a", "b"]), [binary("a"), binary("b")])
    names = [name for name, _ in model.named_parameters() if "categories" in name]
    assert names == ["sharing.encoder.categories.weight"]
    assert not model.supports_features


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_runs_its_own_tower_and_those_before_it(kind):
    model, x = made(kind)
    calls = []
    for task, own in model.sharing.towers.items():
        own.register_forward_hook(lambda *_, task=task: calls.append(task))
    for asked, expected in (("click", ["click"]), ("cart", ["cart", "click"]), ("size", ["size"])):
        calls.clear()
        model(x, [asked])
        assert sorted(calls) == expected
        calls.clear()
        model.extract(asked)(x)
        assert sorted(calls) == expected


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_extracts_copies_state_bf16_and_the_tap(kind, encoder):
    model, x = made(kind, encoder)
    model.eval()
    whole = model(x)
    taps = []
    model(x, tap=taps.append)
    assert taps == [{}]
    other, _ = made(kind, encoder)
    other.load_state_dict(model.state_dict())
    for twin in (model, other.eval(), copy.deepcopy(model)):
        for task in ORDER:
            alone = twin.extract(task)
            assert not alone.training
            torch.testing.assert_close(alone(x), whole[task])
    held = {id(p) for p in model.extract("cart").parameters()}
    assert held <= {id(p) for p in model.parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        for task, raw in model(x).items():
            assert raw.dtype == torch.float32
            torch.testing.assert_close(raw, whole[task], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_makes_the_same_model(kind, tmp_path):
    model, x = made(kind, reset=False)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    assert registry.mark_of(again.sharing) == {"name": kind, "options": {"order": ORDER, "reset": False}}
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


def test_the_calibrator_is_what_later_steps_have_too_much():
    model, x = made("aitm")
    chances = {task: raw.sigmoid() for task, raw in model(x).items()}
    excess = sum(
        (chances[later] - chances[former]).clamp(min=0) for former, later in (("click", "cart"), ("cart", "buy"))
    )
    torch.testing.assert_close(model.sharing.penalties(), {"calibrator": excess.mean()})
    assert model.sharing.penalties()["calibrator"] > 0
    # Without the step between them, two steps are no neighbours; alone, none has one.
    for asked in (["buy", "click"], ["buy"]):
        model(x, asked)
        assert model.sharing.penalties() == {}
    model.eval()(x)
    assert model.sharing.penalties() == {}
    shown = model.sharing.inspect()
    assert sorted(shown) == ["transfer of buy", "transfer of cart"]
    assert all(weights.sum() == pytest.approx(1) for weights in shown.values())


def test_the_calibrators_weight_comes_from_the_settings():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=g)
    # Nothing is learned of the order from these labels: every step is as likely as the one before.
    labels = {step: (torch.rand(400, generator=g) < 0.5).float() for step in ("a", "b")}
    excess = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = MultiTaskModel(AITM(MLP(4, [8]), ["a", "b"]), [binary("a"), binary("b")])
        settings = TrainingSettings(
            epochs=8, batch_size=50, lr=0.02, select="last", penalties=PenaltySettings(sharing={"calibrator": weight})
        )
        train(model, [TensorSource(x, labels)], settings=settings)
        with torch.no_grad():
            found = {task: raw.sigmoid() for task, raw in model.eval()(x).items()}
        excess[weight] = float((found["b"] - found["a"]).clamp(min=0).mean())
    assert excess[10.0] < 0.5 * excess[0.0]


def test_esmm_finds_the_chance_after_a_click_without_ever_seeing_who_did_not_click():
    """A funnel drawn with known chances: pCVR has no target, and comes out as the quotient."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=g)
    click, after = torch.sigmoid(2 * x[:, 0]), torch.sigmoid(2 * x[:, 1] - 0.5)
    clicked = (torch.rand(4000, generator=g) < click).float()
    bought = clicked * (torch.rand(4000, generator=g) < after).float()
    torch.manual_seed(0)
    model = MultiTaskModel(ESMM(MLP(2, [8]), ["click", "buy"]), [binary("click"), binary("buy")])
    settings = TrainingSettings(epochs=15, batch_size=200, lr=0.02, select="last")
    train(model, [TensorSource(x, {"click": clicked, "buy": bought})], settings=settings)
    with torch.no_grad():
        found = {task: raw.sigmoid() for task, raw in model.eval()(x).items()}
    assert float((found["click"] - click).abs().mean()) < 0.04
    assert float((found["buy"] - click * after).abs().mean()) < 0.04
    known = click > 0.3
    assert float((found["buy"] / found["click"] - after)[known].abs().mean()) < 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_a_funnel_is_refused(kind):
    for order in (["a"], ["a", "a"], "ab"):
        with pytest.raises(RecipeError, match=f"'{kind}' needs an order of at least two different tasks"):
            KINDS[kind](MLP(3, [4]), order)
    tasks = [binary("click"), binary("buy"), regression("price")]
    with pytest.raises(RecipeError, match=r"order: Unknown task 'clik'.*Did you mean 'click'"):
        MultiTaskModel(KINDS[kind](MLP(3, [4]), ["clik", "buy"]), tasks)
    with pytest.raises(RecipeError, match=rf"The steps of '{kind}' are binary tasks; found: .*price \(regression\)"):
        MultiTaskModel(KINDS[kind](MLP(3, [4]), ["click", "price"]), tasks)
    with pytest.raises(RecipeError, match="option 'order' is required"):
        registry.build("sharings", kind, {}, encoder=MLP(3, [4]))


def test_a_funnel_from_a_recipe(tmp_path):
    import polars as pl

    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=g)
    click = x > 0
    frame = pl.DataFrame({"x": x.tolist(), "click": click.int().tolist(), "buy": (click & (x > 1)).int().tolist()})
    frame.write_csv(tmp_path / "rows.csv")
    recipe = {
        "data": {"table": str(tmp_path / "rows.csv")},
        "tasks": {"click": {"type": "binary"}, "buy": {"type": "binary"}},
        "model": {
            "encoder": {"name": "tabular", "hidden": [8]},
            "sharing": {"name": "aitm", "order": ["click", "buy"]},
        },
        "training": {"epochs": 2},
    }
    run = pt.run(recipe, out=tmp_path / "run", progress=False)
    report = (run.path / "report.html").read_text()
    assert "the step before" in report
    assert "What a step of the funnel goes on with" in report
