import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.errors import RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing import NeedsExample
from polytask.sharing.mtan import MTAN
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]


def transformer():
    class Mean(nn.Module):
        def forward(self, z):
            return z.mean(1)

    def layer():
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    return nn.Sequential(layer(), layer(), Mean())


class Opaque(nn.Module):
    """A module that does not say what its stages are, with code of its own between them."""

    def __init__(self, make):
        super().__init__()
        self.one, self.two = make()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        z = self.two(self.one(x)).relu()
        return self.out(z.flatten(2).mean(2) if z.dim() == 4 else z)


def opaque_maps():
    return Opaque(lambda: list(ConvNet(2, [3, 4], norm="group").stages))


CASES = {
    "mlp": (lambda: MLP(6, [5, 4]), (6,), None),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group"), (2, 8, 8), None),
    "transformer": (transformer, (5, 8), ["0", "1"]),
    "first stage": (lambda: MLP(6, [5, 4]), (6,), [0]),
    "hooks": (lambda: Opaque(lambda: list(MLP(6, [5, 4]).stages)), (6,), ["one", "two"]),
    "hooks on maps": (opaque_maps, (2, 8, 8), ["two", "one"]),
    "hooks on one": (opaque_maps, (2, 8, 8), ["one"]),
}


def made(case):
    make, shape, stages = CASES[case]
    sharing = MTAN(make(), stages, reduction=2)
    x = torch.randn(6, *shape)
    sharing.setup(TASKS, x)
    for name, buffer in sharing.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return sharing, x


def norm(module, z):
    """Batch norm over everything but the last dimension."""
    flat = z.flatten(0, -2)
    if module.training:
        mean, var = flat.mean(0), flat.var(0, unbiased=False)
    else:
        mean, var = module.running_mean, module.running_var
    return (z - mean) / (var + module.eps).sqrt() * module.weight + module.bias


def to_last(z):
    return z.permute(0, 2, 3, 1) if z.dim() == 4 else z


def to_first(z):
    return z.permute(0, 3, 1, 2) if z.dim() == 4 else z


def reference(sharing, task, x):
    encoder = sharing.encoder
    at = [("one", "two").index(path) for path in sharing.paths] or list(sharing.at)
    if isinstance(encoder, Opaque):
        blocks = [copy.deepcopy(encoder.one), copy.deepcopy(encoder.two)]
        for block in blocks:
            block._forward_hooks.clear()
    else:
        blocks = list(encoder.stages) if hasattr(encoder, "stages") else list(encoder)
    state, attended = x, None
    for number, block in enumerate(blocks):
        state = block(state)
        if number not in at:
            continue
        shared = state
        seen = to_last(shared)
        if attended is not None:
            link = sharing.links[at.index(number) - 1]
            if shared.dim() == 4:
                far = to_first(norm(link.norm, to_last(functional.conv2d(attended, link.conv.weight, padding=1))))
                far = functional.max_pool2d(far.relu(), 2)
            else:
                far = (attended @ link.linear.weight.T + link.linear.bias).relu()
            seen = torch.cat([seen, to_last(far)], -1)
        g, g_norm, _, h, h_norm, _ = sharing.masks[task][at.index(number)]
        mask = torch.sigmoid(norm(h_norm, h(norm(g_norm, g(seen)).relu())))
        attended = shared * to_first(mask)
        # What is behind the last mask reads the attended features; what is before it, the trunk's own.
        state = attended if number == at[-1] else shared
    if isinstance(encoder, Opaque):
        state = state.relu()
        return encoder.out(state.flatten(2).mean(2) if state.dim() == 4 else state)
    return encoder.end(state) if hasattr(encoder, "end") else state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values(case, training):
    sharing, x = made(case)
    sharing.train(training)
    features = sharing(x, ["c", "a"])
    for task in ("a", "c"):
        torch.testing.assert_close(features[task], reference(sharing, task, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_some_tasks_copies_state_bf16_and_the_tap(case):
    sharing, x = made(case)
    sharing.eval()
    taps = []
    whole = sharing(x, TASKS, taps.append)
    assert taps == [{}]
    assert not sharing.supports_features
    other, _ = made(case)
    other.load_state_dict(sharing.state_dict())
    for twin in (sharing.extract("b"), other.eval().extract("b"), copy.deepcopy(sharing).extract("b")):
        torch.testing.assert_close(twin(x), whole["b"])
    with torch.autocast("cpu", torch.bfloat16):
        for task, feature in sharing(x, TASKS).items():
            torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("case", CASES)
def test_task_parameters_are_those_that_one_task_alone_reaches(case):
    sharing, x = made(case)
    touched = {}
    for task in TASKS:
        sharing.zero_grad(set_to_none=True)
        sharing(x, TASKS)[task].square().sum().backward()
        touched[task] = {id(p) for p in sharing.parameters() if p.grad is not None}
    assert set().union(*touched.values()) == {id(p) for p in sharing.parameters()}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        assert {id(p) for p in sharing.task_parameters(task)} == alone


def test_the_trunk_runs_once_and_only_the_asked_masks():
    sharing, x = made("convnet")
    calls = []
    sharing.encoder.stages[0].register_forward_hook(lambda *_: calls.append("trunk"))
    for task in TASKS:
        sharing.masks[task][0].register_forward_hook(lambda *_, task=task: calls.append(task))
    sharing(x, ["b", "c"])
    assert calls == ["trunk", "b", "c"]
    shown = sharing.inspect()
    assert set(shown) == {f"mask of {t} after stage {j}" for t in "bc" for j in (1, 2)}
    assert all(((mask > 0) & (mask < 1)).all() for mask in shown.values())


def test_a_trunk_with_hooks_is_itself_outside_of_a_forward_and_runs_once_for_each_asked_task():
    sharing, x = made("hooks on maps")
    sharing.eval()
    assert sharing.paths == ("one", "two")
    plain = opaque_maps().eval()
    plain.load_state_dict(sharing.encoder.state_dict())
    torch.testing.assert_close(sharing.encoder(x), plain(x))
    calls = []
    watched = sharing.encoder.out.register_forward_hook(lambda *_: calls.append("trunk"))
    expected = sharing(x, TASKS)
    watched.remove()
    assert calls == ["trunk"] * 3
    assert not torch.allclose(expected["a"], plain(x))
    assert set(sharing.inspect()) == {f"mask of {task} after {path}" for task in TASKS for path in ("one", "two")}
    pickled = pickle.loads(pickle.dumps(sharing))
    torch.testing.assert_close(pickled(x, TASKS), expected)
    wrong = []

    def serve(task):
        if not all(torch.equal(sharing(x, [task])[task], expected[task]) for _ in range(30)):
            wrong.append(task)

    threads = [threading.Thread(target=serve, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stage_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out_features = nn.Linear(4, 4), 4

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ShapeError, match="Stage 'layer' is called 2 times in a forward of Twice"):
        MTAN(Twice(), ["layer"]).setup(TASKS, torch.zeros(2, 4))


def test_a_bundle_makes_the_same_model(tmp_path):
    x = torch.randn(3, 6)
    model = MultiTaskModel(MTAN(MLP(6, [5, 4]), ["stages.0"]), [binary("a"), regression("b")], example=x)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


def test_what_cannot_work_is_refused():
    with pytest.raises(ShapeError, match=r"Did you mean 'stages\.0'"):
        MTAN(MLP(3, [4]), ["stages.1"])
    with pytest.raises(RecipeError, match="stages is empty"):
        MTAN(MLP(3, [4]), [])
    with pytest.raises(RecipeError, match="reduction is 0"):
        MTAN(MLP(3, [4]), reduction=0)
    with pytest.raises(ShapeError, match=r"Linear does not say which of its modules are stages. Name them: stages="):
        MTAN(nn.Linear(3, 4))
    with pytest.raises(ShapeError, match=r"Unknown stage of Opaque: 'ones'.*Did you mean 'one'"):
        MTAN(opaque_maps(), ["ones"])
    with pytest.raises(NeedsExample, match="Pass MultiTaskModel"):
        MTAN(MLP(3, [4])).setup(TASKS, None)
    mixed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(1))
    with pytest.raises(ShapeError, match=r"outputs \(2, 6, 6\) to one with \(72,\).*all vectors, all maps"):
        MTAN(mixed).setup(TASKS, torch.zeros(2, 1, 8, 8))
