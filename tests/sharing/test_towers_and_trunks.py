"""cross_stitch, and one trunk that is changed for each task: film, adapters, lora, task_routing."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from polytask import registry
from polytask.errors import RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing import NeedsExample
from polytask.sharing.adapters import Adapters
from polytask.sharing.cross_stitch import CrossStitch
from polytask.sharing.film import FiLM
from polytask.sharing.lora import LoRA
from polytask.sharing.task_routing import TaskRouting
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]


def transformer():
    class Mean(nn.Module):
        def forward(self, z):
            return z.mean(1)

    def layer():
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    return nn.Sequential(layer(), layer(), Mean())


ENCODERS = {
    "mlp": (lambda: MLP(6, [5, 4]), (6,), ["stages.0", "stages.1"], ["stages.0.0", "stages.1.0"]),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group"), (2, 8, 8), ["stages.0", "stages.1"], None),
    "transformer": (transformer, (5, 8), ["0", "1"], ["0.linear1", "1.linear2"]),
}
TRUNKS = ["film", "adapters", "lora", "task_routing"]
CASES = [
    (kind, encoder)
    for kind in ["cross_stitch", *TRUNKS]
    for encoder in ENCODERS
    if (kind, encoder) != ("lora", "convnet")  # it has no linear layer
]


def made(kind, encoder="mlp", **options):
    make, shape, stages, layers = ENCODERS[encoder]
    options = {**({"layers": layers, "rank": 2} if kind == "lora" else {"stages": stages}), **options}
    options |= {"width": 2} if kind == "adapters" else {}
    sharing = registry.build("sharings", kind, options, encoder=make())
    sharing.setup(TASKS, torch.randn(2, *shape))
    shake(sharing)
    return sharing, torch.randn(4, *shape)


def shake(sharing):
    """Move what starts at zero, so that tasks differ."""
    for parameter in sharing.parameters():
        with torch.no_grad():
            parameter += 0.2 * torch.randn_like(parameter)


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(("per_channel", "units"), [(True, 32), (False, 8)])
def test_cross_stitch_has_the_published_parameter_counts(per_channel, units):
    sharing = CrossStitch(MLP(8, [4, 4]), per_channel=per_channel)
    sharing.setup(["a", "b"], None)
    assert count(sharing.towers.parameters()) == 112
    assert count(sharing.units.parameters()) == units
    for unit in sharing.units:
        torch.testing.assert_close(unit.rates()[:, :, 0], torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


def channels(vector, state):
    return vector.view(-1, 1, 1) if state.dim() == 4 else vector


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("at", [None, [0]])
def test_cross_stitch_values(encoder, at):
    stages = ENCODERS[encoder][2] if at is None else at
    sharing, x = made("cross_stitch", encoder, stages=stages)
    towers = [sharing.towers[task] for task in TASKS]
    states = [x] * 3
    blocks = [list(t.stages) if hasattr(t, "stages") else list(t) for t in towers]
    for number in range(len(blocks[0])):
        states = [block[number](z) for block, z in zip(blocks, states, strict=True)]
        if number < len(stages):
            rates = sharing.units[number].rates()
            states = [sum(channels(rates[k, j], states[j]) * states[j] for j in range(3)) for k in range(3)]
    expected = [t.end(z) if hasattr(t, "end") else z for t, z in zip(towers, states, strict=True)]
    for asked in (TASKS, ["b"]):
        for task, feature in sharing(x, asked).items():
            torch.testing.assert_close(feature, expected[TASKS.index(task)])


def test_a_single_tower_and_same_one_change_nothing():
    encoder = MLP(6, [5, 4])
    x = torch.randn(4, 6)
    alone = CrossStitch(encoder)
    alone.setup(["a"], None)
    torch.testing.assert_close(alone(x, ["a"])["a"], encoder(x))
    apart = CrossStitch(encoder, same=1.0)
    apart.setup(TASKS, None)
    torch.testing.assert_close(apart(x, ["c"])["c"], apart.towers["c"](x))


def test_behind_the_last_unit_only_the_asked_tower_runs():
    sharing, x = made("cross_stitch", stages=["stages.0"])
    calls = []
    for task in TASKS:
        sharing.towers[task].stages[1].register_forward_hook(lambda *_, task=task: calls.append(task))
    sharing(x, ["b"])
    assert calls == ["b"]


def along(vector, state):
    return vector.view(-1, 1, 1) if state.dim() == 4 else vector


def changed(kind, sharing, number, task, inputs, output):
    """What the papers' equations make of a stage's output."""
    change = sharing.changes[number]
    if kind == "film":
        gamma, beta = (change.maps.weight @ sharing.embeddings[task]).chunk(2)
        return (1 + along(gamma, output)) * output + along(beta, output)
    if kind == "adapters":
        down, _, up = change.layers[task]
        last = output.permute(0, 2, 3, 1) if output.dim() == 4 else output
        narrow = nn.functional.gelu(last @ down.weight.T + down.bias) @ up.weight.T + up.bias
        return output + (narrow.permute(0, 3, 1, 2) if output.dim() == 4 else narrow)
    if kind == "lora":
        down, up = change.pairs[task]
        return output + sharing.alpha / 2 * inputs @ down.weight.T @ up.weight.T
    return output * along(change.routes[TASKS.index(task)], output)


@pytest.mark.parametrize(("kind", "encoder"), [case for case in CASES if case[0] in TRUNKS])
@pytest.mark.parametrize("training", [True, False])
def test_trunk_values(kind, encoder, training):
    sharing, x = made(kind, encoder, **({"alpha": 3.0} if kind == "lora" else {}))
    sharing.train(training)
    trunk = ENCODERS[encoder][0]().train()
    trunk.load_state_dict(sharing.encoder.state_dict())
    _, _, stages, layers = ENCODERS[encoder]
    places = layers if kind == "lora" else stages
    for task in TASKS:
        handles = [
            trunk.get_submodule(p).register_forward_hook(
                lambda _, i, out, n=n, t=task: changed(kind, sharing, n, t, i[0], out)
            )
            for n, p in enumerate(places)
        ]
        expected = trunk(x)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(sharing(x, [task])[task], expected)
        assert not torch.allclose(expected, trunk(x))


@pytest.mark.parametrize("kind", ["film", "adapters", "lora"])
def test_all_tasks_start_from_the_trunk_as_given(kind):
    encoder = MLP(6, [5, 4])
    x = torch.randn(4, 6)
    expected = encoder(x).detach()
    sharing = registry.build("sharings", kind, {}, encoder=encoder)
    sharing.setup(TASKS, x)
    for feature in sharing(x, TASKS).values():
        torch.testing.assert_close(feature, expected)
    torch.testing.assert_close(encoder(x), expected)


def test_lora_merges_into_a_plain_trunk():
    sharing, x = made("lora", "transformer")
    merged = sharing.merge("b")
    torch.testing.assert_close(merged(x), sharing(x, ["b"])["b"])
    torch.testing.assert_close(merged(x), merged.eval()(x))
    assert set(merged.state_dict()) == set(sharing.encoder.state_dict())
    assert not any(p.requires_grad for p in sharing.encoder.parameters())
    assert all(p.requires_grad for p in sharing.task_parameters("a"))


def test_routes_share_what_sigma_says_and_deal_out_the_rest():
    sharing = TaskRouting(MLP(6, [20]), sigma=0.4)
    sharing.setup(TASKS, torch.zeros(2, 6))
    routes = sharing.inspect()["routes after stages.0"]
    users = routes.sum(0)
    assert (users == 3).sum() == 8
    assert (users == 1).sum() == 12
    assert routes.sum(1).tolist() == [12, 12, 12]
    again = TaskRouting(MLP(6, [20]), sigma=0.4)
    again.setup(TASKS, torch.zeros(2, 6))
    assert torch.equal(again.inspect()["routes after stages.0"], routes)
    plain = TaskRouting(MLP(6, [20]), sigma=1.0)
    plain.setup(TASKS, torch.zeros(2, 6))
    assert plain.inspect()["routes after stages.0"].all()


@pytest.mark.parametrize("kind", ["cross_stitch", "stitched early", *TRUNKS])
def test_task_parameters_are_those_that_one_task_alone_reaches(kind):
    encoder = MLP(6, [5, 4], activation="gelu")
    if kind == "stitched early":
        sharing = CrossStitch(encoder, ["stages.0"])
    else:
        sharing = registry.build("sharings", kind, {}, encoder=encoder)
    x = torch.randn(4, 6)
    sharing.setup(TASKS, x)
    shake(sharing)
    touched = {}
    for task in TASKS:
        sharing.zero_grad(set_to_none=True)
        sharing(x, TASKS)[task].square().sum().backward()
        touched[task] = {id(p) for p in sharing.parameters() if p.grad is not None}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        assert {id(p) for p in sharing.task_parameters(task)} == alone
    assert kind == "task_routing" or alone


@pytest.mark.parametrize(("kind", "encoder"), CASES)
def test_some_tasks_copies_state_bf16_and_the_tap(kind, encoder):
    sharing, x = made(kind, encoder)
    sharing.eval()
    taps = []
    whole = sharing(x, TASKS, lambda features: taps.append(features))
    assert taps == [{}]
    assert not sharing.supports_features
    other, _ = made(kind, encoder)
    other.load_state_dict(sharing.state_dict())
    copied = copy.deepcopy(sharing)
    pickled = pickle.loads(pickle.dumps(sharing)) if encoder != "transformer" else sharing
    for twin in (sharing.extract("b"), other.eval().extract("b"), copied.extract("b"), pickled.extract("b")):
        torch.testing.assert_close(twin(x), whole["b"])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    torch.testing.assert_close(sharing(x, ["c"])["c"], whole["c"])
    with torch.autocast("cpu", torch.bfloat16):
        for task, feature in sharing(x, TASKS).items():
            torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["cross_stitch", *TRUNKS])
def test_a_bundle_makes_the_same_model(kind, tmp_path):
    options = {"lora": {"rank": 3}, "cross_stitch": {"stages": [0]}}.get(kind, {})
    sharing = registry.build("sharings", kind, options, encoder=MLP(6, [5, 4]))
    x = torch.randn(3, 6)
    model = MultiTaskModel(sharing, [binary("a"), regression("b")], example=x)
    shake(sharing)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


def test_threads_keep_their_tasks_apart():
    sharing, x = made("adapters")
    expected = sharing(x, TASKS)
    wrong = []

    def serve(task):
        same = [torch.equal(sharing(x, [task])[task], expected[task]) for _ in range(50)]
        if not all(same):
            wrong.append(task)

    threads = [threading.Thread(target=serve, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.out_features = 4

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CrossStitch(MLP(3, [4]), ["stages.1"]), ShapeError, "Did you mean 'stages.0'"),
        (lambda: CrossStitch(MLP(3, [4]), [3]), ShapeError, "Unknown stage of MLP: '3'"),
        (lambda: CrossStitch(MLP(3, [4]), []), RecipeError, "at least one stage"),
        (lambda: CrossStitch(MLP(3, [4]), same=1.5), RecipeError, "same is 1.5"),
        (lambda: CrossStitch(nn.Linear(3, 4)), ShapeError, "Linear does not run in stages"),
        (lambda: FiLM(Twice(), ["layr"]), ShapeError, "Unknown stage of Twice: 'layr'.*Did you mean 'layer'"),
        (lambda: FiLM(Twice()), ShapeError, "Name them: stages="),
        (lambda: FiLM(MLP(3, [4]), []), RecipeError, "name at least one stage"),
        (lambda: Adapters(MLP(3, [4]), width=0), RecipeError, "width is 0"),
        (lambda: Adapters(MLP(3, [4]), activation="glu"), RecipeError, "Did you mean 'gelu'"),
        (lambda: LoRA(ConvNet(1)), ShapeError, "ConvNet has none that can be corrected. Use 'adapters'"),
        (lambda: LoRA(MLP(8, [8]), rank=9), RecipeError, r"rank is 9, but layer 'stages\.0\.0' maps 8 to 8"),
        (lambda: LoRA(MLP(8, [8]), ["stages.0"]), ShapeError, r"cannot correct stages\.0\. Linear layers that it can"),
        (lambda: TaskRouting(MLP(3, [4]), sigma=-0.1), RecipeError, "sigma is -0.1"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_only_a_run_can_tell_is_refused_at_setup():
    x = torch.zeros(2, 4)
    for path, times in (("layer", 2), ("never", 0)):
        with pytest.raises(ShapeError, match=f"Stage '{path}' is called {times} times"):
            FiLM(Twice(), [path]).setup(TASKS, x)
    with pytest.raises(NeedsExample, match=r"Pass MultiTaskModel\(\.\.\., example"):
        FiLM(MLP(3, [4])).setup(TASKS, None)
    with pytest.raises(NeedsExample, match="How many channels"):
        CrossStitch(ConvNet(1)).setup(TASKS, None)
    with pytest.raises(RecipeError, match="2 channels for 3 tasks"):
        TaskRouting(MLP(4, [2]), sigma=0.0).setup(TASKS, x)
