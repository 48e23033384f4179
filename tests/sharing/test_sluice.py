import copy

import pytest
import torch
from torch import nn

from polytask.errors import RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet, staged
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing import CrossStitch, NeedsExample, Sluice
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]


def transformer():
    class Mean(nn.Module):
        def forward(self, z):
            return z.mean(1)

    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    return staged(nn.Sequential(*layers, Mean()), ["0", "1"], after=["2"], example=torch.zeros(2, 5, 8))


CASES = {
    "mlp": (lambda: MLP(6, [6, 4, 4], activation="gelu"), (6,)),
    "convnet": (lambda: ConvNet(2, [4, 6], norm="group"), (2, 8, 8)),
    "transformer": (transformer, (5, 8)),
}


def made(case, tasks=TASKS, **options):
    make, shape = CASES[case]
    sharing = Sluice(make(), **options)
    x = torch.randn(4, *shape)
    sharing.setup(tasks, x)
    with torch.no_grad():
        for part in (sharing.units, sharing.mixtures):
            for parameter in part.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return sharing, x


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("asked", [TASKS, ["c", "a"], ["b"]])
@pytest.mark.parametrize(
    ("case", "stages", "subspaces"),
    [(case, None, 2) for case in CASES] + [("mlp", [0, 1], 2), ("mlp", [2], 4), ("transformer", None, 4)],
)
def test_values(case, stages, subspaces, asked):
    sharing, x = made(case, stages=stages, subspaces=subspaces)
    towers = [sharing.towers[task] for task in TASKS]
    at = stages or range(len(towers[0].stages))
    shown = sharing.inspect()
    states, layers = [x] * 3, []
    for number in range(len(towers[0].stages)):
        states = [tower.stages[number](z) for tower, z in zip(towers, states, strict=True)]
        if number in at:
            dim = 1 if case == "convnet" else -1
            alpha = shown[f"alpha {number + 1}"]
            every = [piece for z in states for piece in z.tensor_split(subspaces, dim)]
            mixed = [sum(rate * piece for rate, piece in zip(row, every, strict=True)) for row in alpha]
            states = [torch.cat(mixed[k * subspaces : (k + 1) * subspaces], dim) for k in range(3)]
            layers.append(states)
        if number == max(at) and len(at) > 1:
            states = []
            for k, task in enumerate(TASKS):
                z = 0
                for rate, fit, layer in zip(shown["beta"][k], sharing.mixtures[task].fits, layers, strict=True):
                    z = z + rate * fitted(fit, layer[k], layers[-1][k])
                states.append(z)
    features = sharing(x, asked)
    assert list(features) == asked
    for task, feature in features.items():
        k = TASKS.index(task)
        torch.testing.assert_close(feature, towers[k].end(states[k]), rtol=1e-4, atol=1e-5)


def fitted(fit, layer, final):
    if layer.dim() == 4 and layer.shape[2:] != final.shape[2:]:
        factor = layer.shape[2] // final.shape[2]
        layer = nn.functional.avg_pool2d(layer, factor)
    if not hasattr(fit, "weight"):
        return layer
    return torch.einsum("oc,nc...->no...", fit.weight, layer)


def test_parameter_counts():
    sharing = Sluice(MLP(8, [4, 4]))
    sharing.setup(["a", "b"], None)
    assert count(sharing.towers.parameters()) == 112
    assert count(sharing.units.parameters()) == 2 * 4 * 4
    assert count(sharing.mixtures.parameters()) == 2 * 2
    unequal = Sluice(MLP(8, [6, 4]))
    unequal.setup(["a", "b"], None)
    assert count(unequal.mixtures.parameters()) == 2 * 2 + 2 * 6 * 4
    single = Sluice(MLP(8, [4, 4]), [1])
    single.setup(["a", "b"], None)
    assert count(single.units.parameters()) == 16
    assert not single.mixtures


def test_initial_rates():
    sharing = Sluice(MLP(8, [4, 4, 4]), same=0.7, last=0.8)
    sharing.setup(["a", "b"], None)
    shown = sharing.inspect()
    assert list(shown) == ["alpha 1", "alpha 2", "alpha 3", "beta"]
    expected = torch.full((4, 4), 0.1) + 0.6 * torch.eye(4)
    for number in (1, 2, 3):
        torch.testing.assert_close(shown[f"alpha {number}"], expected)
    torch.testing.assert_close(shown["beta"], torch.tensor([[0.1, 0.1, 0.8]] * 2))
    assert not any(t.requires_grad for t in shown.values())


def test_one_subspace_and_the_last_layer_alone_are_scalar_cross_stitch():
    encoder = MLP(6, [4, 4])
    x = torch.randn(5, 6)
    sharing = Sluice(encoder, subspaces=1, same=0.8, last=1.0)
    sharing.setup(TASKS, None)
    stitched = CrossStitch(copy.deepcopy(encoder), per_channel=False, same=0.8)
    stitched.setup(TASKS, None)
    stitched.towers.load_state_dict(sharing.towers.state_dict())
    for task, feature in sharing(x, TASKS).items():
        torch.testing.assert_close(feature, stitched(x, TASKS)[task])


def test_one_task_that_shares_nothing_is_the_encoder():
    encoder = MLP(6, [4, 4])
    x = torch.randn(5, 6)
    sharing = Sluice(encoder, same=1.0, last=1.0)
    sharing.setup(["a"], None)
    torch.testing.assert_close(sharing(x, ["a"])["a"], encoder(x))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("subspaces", [1, 2])
def test_the_penalty_is_that_of_the_weights_that_write_the_channels(case, subspaces):
    sharing, _ = made(case, subspaces=subspaces)
    if subspaces == 1:
        assert sharing.penalties() == {}
        return
    expected = 0.0
    for tower in sharing.towers.values():
        for stage in tower.stages:
            weight = (stage.linear2 if case == "transformer" else stage[0]).weight.flatten(1)
            half = len(weight) // 2
            for one in weight[:half]:
                for other in weight[half:]:
                    expected += torch.dot(one, other) ** 2
    penalty = sharing.penalties()["orthogonality"]
    torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=0)
    penalty.backward()
    assert all(p.grad is None for p in sharing.units.parameters())


def test_the_penalty_vanishes_for_orthogonal_subspaces_and_skips_stages_without_weights():
    sharing = Sluice(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh()), reset=False)
    sharing.setup(["a", "b"], torch.zeros(2, 4))
    assert sharing.penalties()["orthogonality"] > 0
    with torch.no_grad():
        for tower in sharing.towers.values():
            nn.init.orthogonal_(tower[0].weight)
    assert sharing.penalties()["orthogonality"] < 1e-10
    bare = Sluice(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), [1])
    assert bare.penalties() == {}
    bare.setup(["a", "b"], torch.zeros(2, 4))
    assert bare.penalties() == {}


def with_an_end():
    layers = [nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4), nn.Linear(4, 3)]
    return staged(nn.Sequential(*layers), ["1", "2"], before=["0"], after=["3"], example=torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("make", "stages"), [(CASES["mlp"][0], None), (CASES["mlp"][0], [0, 1]), (with_an_end, None), (with_an_end, [0])]
)
def test_task_parameters_are_those_that_one_task_alone_reaches(make, stages):
    sharing = Sluice(make(), stages)
    x = torch.randn(4, 6)
    sharing.setup(TASKS, x)
    touched = {}
    for task in TASKS:
        sharing.zero_grad(set_to_none=True)
        sharing(x, TASKS)[task].square().sum().backward()
        touched[task] = {id(p) for p in sharing.parameters() if p.grad is not None}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        own = list(sharing.task_parameters(task))
        assert {id(p) for p in own} == alone
        assert len(own) == len(alone) > 0
    assert set().union(*touched.values()) == {id(p) for p in sharing.parameters()}


def test_behind_the_last_unit_only_the_asked_tower_runs():
    sharing, x = made("mlp", stages=[0, 1])
    calls = []
    for task in TASKS:
        sharing.towers[task].stages[2].register_forward_hook(lambda *_, task=task: calls.append(task))
    sharing.extract("b")(x)
    assert calls == ["b"]


@pytest.mark.parametrize("case", CASES)
def test_copies_state_bf16_and_the_tap(case):
    sharing, x = made(case)
    sharing.eval()
    taps = []
    whole = sharing(x, TASKS, lambda features: taps.append(features))
    assert taps == [{}]
    assert not sharing.supports_features
    other, _ = made(case)
    other.load_state_dict(sharing.state_dict())
    for twin in (sharing.extract("b"), other.eval().extract("b"), copy.deepcopy(sharing).extract("b")):
        torch.testing.assert_close(twin(x), whole["b"])
    with torch.autocast("cpu", torch.bfloat16):
        for task, feature in sharing(x, TASKS).items():
            torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.1)
        assert torch.isfinite(sharing.penalties()["orthogonality"])
    low = copy.deepcopy(sharing).bfloat16()
    for task, feature in low(x.bfloat16(), TASKS).items():
        assert feature.dtype == torch.bfloat16
        torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.1)


def test_maps_of_another_size_than_the_example_still_mix():
    sharing, _ = made("convnet")
    for size in (6, 9, 16):
        assert sharing(torch.randn(2, 2, size, size), ["a"])["a"].shape == (2, 6)


def test_a_bundle_makes_the_same_model(tmp_path):
    sharing = Sluice(MLP(6, [6, 4]), [0, 1], subspaces=2, same=0.6, last=0.5)
    x = torch.randn(3, 6)
    model = MultiTaskModel(sharing, [binary("a"), regression("b")], example=x)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    assert (again.sharing.same, again.sharing.last, again.sharing.at) == (0.6, 0.5, (0, 1))
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sluice(nn.Linear(3, 4)), ShapeError, "Linear does not run in stages"),
        (lambda: Sluice(MLP(3, [4]), ["stages.1"]), ShapeError, "Did you mean 'stages.0'"),
        (lambda: Sluice(MLP(3, [4]), []), RecipeError, "at least one stage"),
        (lambda: Sluice(MLP(3, [4]), subspaces=0), RecipeError, "subspaces is 0"),
        (lambda: Sluice(MLP(3, [4]), same=1.5), RecipeError, r"same is 1\.5"),
        (lambda: Sluice(MLP(3, [4]), last=-1), RecipeError, "last is -1"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Pair(nn.Module):
    def forward(self, z):
        return z, z


class Shorter(nn.Module):
    def forward(self, z):
        return z[:, ::2]


def test_what_only_a_run_can_tell_is_refused_when_the_model_is_made():
    tasks = [binary("a"), binary("b")]
    x = torch.zeros(2, 5, 4)
    with pytest.raises(ShapeError, match="Stage 1 of MLP has 5 channels, which cannot be cut into 2 subspaces"):
        MultiTaskModel(Sluice(MLP(3, [4, 5])), tasks)
    for layers in ([nn.Linear(4, 4), Shorter()], [nn.Linear(4, 4), nn.Flatten(1)]):
        odd = nn.Sequential(*layers)
        with pytest.raises(
            ShapeError, match=r"stage 0 of Sequential returns the shape \(5, 4\) and stage 1 \(.*stages="
        ):
            Sluice(odd, subspaces=1).setup(["a", "b"], x)
        assert Sluice(odd, [0]).setup(["a", "b"], x)["a"] in ((3, 4), (20,))
    with pytest.raises(ShapeError, match="Stage 1 of Sequential returns a tuple"):
        Sluice(staged_pair()).setup(["a", "b"], x)
    with pytest.raises(NeedsExample, match="How many channels"):
        Sluice(ConvNet(1)).setup(["a", "b"], None)


def staged_pair():
    encoder = nn.Sequential(nn.Linear(4, 4), Pair())
    encoder.out_features = 4
    return encoder
