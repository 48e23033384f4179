import copy

import pytest
import torch
from torch import nn

from polytask.errors import RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet, staged
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing.ltb import LTB
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]


def transformer():
    class Mean(nn.Module):
        def forward(self, z):
            return z.mean(1)

    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    return staged(nn.Sequential(*layers, Mean()), ["0", "1"], after=["2"], example=torch.zeros(2, 5, 8))


CASES = {
    "mlp": (lambda: MLP(6, [5, 4, 4], activation="gelu"), (6,)),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group"), (2, 8, 8)),
    "transformer": (transformer, (5, 8)),
}


def made(case, **options):
    make, shape = CASES[case]
    sharing = LTB(make(), **options)
    x = torch.randn(4, *shape)
    sharing.setup(TASKS, x)
    for logits in (*sharing.parents, *sharing.leaves.values()):
        nn.init.normal_(logits)
    return sharing, x


def run(sharing, level, number, z):
    bank = sharing.nodes[level][number]
    alone = copy.deepcopy(bank.template).to_empty(device="cpu")
    alone.load_state_dict({name: stack[0] for name, stack in bank.state().items()}, strict=False)
    return alone.train(sharing.training)(z)


@pytest.mark.parametrize("branches", [None, 2])
@pytest.mark.parametrize("case", CASES)
def test_values_in_training(case, branches):
    sharing, x = made(case, branches=branches, temperature=0.7)
    torch.manual_seed(3)
    features = sharing(x, ["c", "a"])
    torch.manual_seed(3)
    count = branches or 3
    outs = [run(sharing, 0, number, x) for number in range(count)]

    def chances(theta):
        noise = -torch.empty_like(theta).exponential_().log()
        return ((theta + noise) / 0.7).softmax(-1)

    for level, theta in enumerate(sharing.parents, start=1):
        d = chances(theta)
        outs = [run(sharing, level, j, sum(d[j, i] * outs[i] for i in range(count))) for j in range(count)]
    d = chances(torch.stack([sharing.leaves["c"], sharing.leaves["a"]]))
    for row, task in enumerate(("c", "a")):
        expected = sum(d[row, i] * outs[i] for i in range(count))
        torch.testing.assert_close(features[task], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_follows_the_tree_and_runs_nothing_else(case):
    sharing, x = made(case)
    sharing.eval()
    calls = []
    for level, nodes in enumerate(sharing.nodes):
        for number, node in enumerate(nodes):
            node.register_forward_hook(lambda *_, at=(level, number): calls.append(at))
    for task in TASKS:
        node = sharing.leaves[task].argmax().item()
        path = [node]
        for theta in reversed(list(sharing.parents)):
            node = theta[node].argmax().item()
            path.insert(0, node)
        assert sharing.branch(task) == path
        calls.clear()
        feature = sharing(x, [task])[task]
        assert calls == list(enumerate(path))
        expected = x
        for level, number in enumerate(path):
            expected = run(sharing, level, number, expected)
        torch.testing.assert_close(feature, expected)
        torch.testing.assert_close(sharing.extract(task)(x), expected)
    calls.clear()
    sharing(x, TASKS)
    assert len(calls) == len(set(calls))


def test_the_tree_is_shown():
    sharing, _ = made("mlp")
    shown = sharing.inspect()
    assert {name: tuple(t.shape) for name, t in shown.items()} == {
        "stage 2": (3, 3),
        "stage 3": (3, 3),
        "tasks": (3, 3),
    }
    for chances in shown.values():
        torch.testing.assert_close(chances.sum(-1), torch.ones(3))


def test_a_branch_that_fits_a_task_better_is_found():
    torch.manual_seed(0)
    sharing = LTB(nn.Sequential(nn.Linear(1, 1, bias=False)), 2, temperature=0.5)
    sharing.setup(["up", "down"], torch.zeros(2, 1))
    with torch.no_grad():
        for node, slope in zip(sharing.nodes[0], (1.0, -1.0), strict=True):
            next(node.parameters()).fill_(slope)
    sharing.nodes.requires_grad_(False)
    optimizer = torch.optim.Adam(sharing.leaves.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 16).unsqueeze(1)
    for _ in range(60):
        features = sharing(x, ["up", "down"])
        loss = (features["up"] - x).square().mean() + (features["down"] + x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (sharing.branch("up"), sharing.branch("down")) == ([0], [1])


def test_task_parameters_are_those_that_one_task_alone_reaches():
    sharing, x = made("mlp")
    touched = {}
    for task in TASKS:
        sharing.zero_grad(set_to_none=True)
        sharing(x, [task])[task].square().sum().backward()
        touched[task] = {id(p) for p in sharing.parameters() if p.grad is not None}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        assert {id(p) for p in sharing.task_parameters(task)} == alone
        assert alone


@pytest.mark.parametrize("case", CASES)
def test_copies_state_bf16_and_the_tap(case):
    sharing, x = made(case)
    sharing.eval()
    taps = []
    whole = sharing(x, TASKS, taps.append)
    assert taps == [{}]
    assert not sharing.supports_features
    other, _ = made(case)
    other.load_state_dict(sharing.state_dict())
    for twin in (other.eval(), copy.deepcopy(sharing)):
        torch.testing.assert_close(twin(x, ["b"])["b"], whole["b"])
    with torch.autocast("cpu", torch.bfloat16):
        for mode in (False, True):
            for feature in sharing.train(mode)(x, TASKS).values():
                assert torch.isfinite(feature).all()


def test_a_bundle_makes_the_same_model(tmp_path):
    x = torch.randn(3, 6)
    model = MultiTaskModel(LTB(MLP(6, [5, 4])), [binary("a"), regression("b")], example=x)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


def test_what_cannot_work_is_refused():
    with pytest.raises(ShapeError, match="Linear does not run in stages"):
        LTB(nn.Linear(3, 4))
    with pytest.raises(RecipeError, match="branches is 0"):
        LTB(MLP(3, [4]), 0)
    with pytest.raises(RecipeError, match=r"temperature is 0\.0"):
        LTB(MLP(3, [4]), temperature=0.0)
